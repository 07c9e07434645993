"""The options of the command line as types: what each is called, what it may be, and what its help says.

`read_config` gives options their defaults from a YAML file. Which command takes which of these, and what is done
with them, is in the module of the command. No torch here.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mha2gqa.methods import METHODS
from mha2gqa.units import parse_count, parse_share
from mha2gqa.verbs.convert.options import Grouping, Refinement
from mha2gqa.verbs.verify.options import Level


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return an option's check that its value is one of `names`."""

    def check(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return check


def one_of_or_none(names: Iterable[str]) -> Callable[[str | None], str | None]:
    """Return an option's check that its value is one of `names`, or none."""
    check = one_of(names)
    return lambda value: None if value is None else check(value)


def at_least(least: int) -> Callable[[Any], int]:
    """Return an option's parser of a whole number, also with a suffix: `256K`."""

    def parse(value: Any) -> int:
        try:
            count = parse_count(str(value))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if count < least:
            raise typer.BadParameter(f"{value} is less than {least}")
        return count

    return parse


def share(most: float = math.inf) -> Callable[[Any], float]:
    """Return an option's parser of a share from 0 on, also in per cent: `1%`."""

    def parse(value: Any) -> float:
        try:
            number = parse_share(str(value))
        except ValueError:
            raise typer.BadParameter(f"{value!r} is no number or percentage, such as 0.01 or 1%") from None
        if not 0 <= number <= most:
            raise typer.BadParameter(f"{value} is not from 0 to {most:g}" if most < math.inf else f"{value} is below 0")
        return number

    return parse


_METHODS = (*METHODS, "auto")
_GROUPINGS = get_args(Grouping)
_REFINEMENTS = get_args(Refinement)
LEVELS = get_args(Level)
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of the other options from a YAML file."""
    read_defaults(context, path)
    return path


def read_defaults(context: typer.Context, path: Path | None, but: str | None = None) -> dict[str, Any]:
    """Take the defaults of the other options from a YAML file, and return all that is in it.

    Args:
        context: Of the command.
        path: The file; without one there is nothing.
        but: A key that may be there and is no option.
    """
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    known = {parameter.name for parameter in context.command.params} | ({but} if but else set())
    if not isinstance(content, dict) or not set(content) <= known:
        raise typer.BadParameter(f"{path} must map these names to values: {', '.join(sorted(map(str, known)))}")
    defaults = {name: value for name, value in content.items() if name != but}
    context.default_map = {**(context.default_map or {}), **defaults}
    return content


def _check_levels(values: list[str] | None) -> list[str]:
    for value in values or []:
        one_of(LEVELS)(value)
    return values or []


Model = Annotated[
    str | None, typer.Argument(help="Directory or Hub id (org/name, org/name@revision). Default: the reference.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Directory to create.", show_default=False)]
ShardSize = Annotated[
    str | None, typer.Option(help="Largest weight file, such as 5GB. Default: divided as the source is.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that an earlier run made.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file with values for these options.", callback=read_config, is_eager=True)
]

Column = Annotated[str | None, typer.Option(help="Column of tables that holds the text.")]
Context = Annotated[int | None, typer.Option(help="Tokens of a block. Default: the model's, up to 2048.")]
Dtype = Annotated[
    str | None, typer.Option(help="To run in.", metavar="|".join(_DTYPES), callback=one_of_or_none(_DTYPES))
]
Device = Annotated[str | None, typer.Option(help="To run on. Default: an accelerator, else the CPU.")]

# convert
Method = Annotated[
    str, typer.Option(help="How a group becomes one head.", metavar="|".join(_METHODS), callback=one_of(_METHODS))
]
GroupingName = Annotated[
    str, typer.Option(help="Which heads share one.", metavar="|".join(_GROUPINGS), callback=one_of(_GROUPINGS))
]
RefinementName = Annotated[
    str | None,
    typer.Option(
        help="Improve the result on text: refit values and outputs, train each layer, train all of them together.",
        metavar="|".join(_REFINEMENTS),
        callback=one_of_or_none(_REFINEMENTS),
    ),
]
CalibrationText = Annotated[
    list[str] | None,
    typer.Option(help="Calibration text: text, jsonl, csv, parquet, Hub data set, or `self`; repeatable."),
]
CalibrationTokens = Annotated[
    int, typer.Option(parser=at_least(2), metavar="N", help="Tokens of calibration text, at most: 65536, 256K.")
]
Steps = Annotated[int, typer.Option(min=1, help="Training steps of --refine distil and joint.")]
ActivationMemory = Annotated[str, typer.Option(help="Activations in memory; the rest goes to disk.")]
ContentIncrease = Annotated[
    float, typer.Option(parser=share(), metavar="SHARE", help="What --method auto is content with, such as 1%.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that draws numbers.")]

# verify
Converted = Annotated[
    Path | None, typer.Argument(help="Converted checkpoint. Default: the one directory here with a record.")
]
Against = Annotated[str | None, typer.Option(help="Original. Default: what the record names.")]
ComparedText = Annotated[
    list[str] | None, typer.Option(help="Text, jsonl, csv or parquet file, Hub data set, or `self`; repeatable.")
]
ComparedTokens = Annotated[
    int, typer.Option(parser=at_least(2), metavar="N", help="Tokens to compare the outputs on: 32768, 50K.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Blocks at a time. Default: 2048 tokens.")]
LevelNames = Annotated[
    list[str] | None,
    typer.Option(help="What to verify; repeatable.", metavar="|".join(LEVELS), callback=_check_levels),
]
LargestIncrease = Annotated[
    float | None,
    typer.Option(parser=share(), metavar="SHARE", help="Largest increase of the perplexity. Default: 0.01, or 1%."),
]
LargestKl = Annotated[float | None, typer.Option(min=0, help="Largest mean KL, nats a token. Default: 0.05.")]
LeastTop1 = Annotated[
    float | None,
    typer.Option(parser=share(1), metavar="SHARE", help="Least share of equal most likely tokens. Default: 0.9."),
]
LeastCosine = Annotated[
    float | None,
    typer.Option(min=-1, max=1, help="Least mean cosine of embeddings, for models without a head. Default: 0.99."),
]
VerifySeed = Annotated[int, typer.Option(help="Seed of sampled text and of the bootstrap.")]
Tasks = Annotated[str | None, typer.Option(help="Benchmarks of lm-evaluation-harness, such as hellaswag,piqa.")]
TaskPath = Annotated[Path | None, typer.Option(help="Directory of further task definitions.")]
ReportDirectory = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write the page report.html into this directory.")
]
WriteCard = Annotated[
    bool, typer.Option("--write-card", help="Add the numbers to the converted checkpoint's README.md.")
]
