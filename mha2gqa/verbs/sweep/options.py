"""What can be asked of `sweep`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from mha2gqa.errors import OptionError
from mha2gqa.methods import METHODS
from mha2gqa.options import Option, Options, at_least, listed, listed_names, share
from mha2gqa.verbs.convert.options import STEPS, ActivationMemory, CalibrationTokens, GroupingName, Refinement, Steps
from mha2gqa.verbs.convert.parsers import read_window
from mha2gqa.verbs.options import AsJson, BatchSize, Column, ConfigFile, Context, Device, Dtype, Model, Page, Seed

_REFINEMENTS = ("none", *get_args(Refinement))


def _groups(value: Any) -> tuple[int, ...]:
    try:
        return tuple(int(str(one)) for one in listed(value))
    except ValueError as error:
        raise OptionError(f"--groups {value} is no list of whole numbers, such as 8,4,2,1") from error


def _each(parse: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a parser of values that are separated by commas."""
    return lambda value: tuple(map(parse, listed(value)))


def _refinements(value: Any) -> tuple[str | None, ...]:
    names = ["none" if name is None else name for name in listed(value)]
    if unknown := [name for name in names if name not in _REFINEMENTS]:
        raise OptionError(f"--refine {unknown[0]!r} is not one of {', '.join(_REFINEMENTS)}")
    return tuple(None if name == "none" else name for name in names)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Options):
    """Try many conversions on held-out text, and recommend one."""

    model: Model = None
    groups: Annotated[
        tuple[int, ...],
        Option(
            "KV heads of the results: 8,4,2,1. Default: all that are possible.",
            parse=_groups,
            flags=("--groups", "-g"),
        ),
    ] = ()
    window: Annotated[
        tuple[int, ...],
        Option("Also windows of so many tokens: 4096,1024; alone, and with fewer heads.", parse=_each(read_window)),
    ] = ()
    """Also windows of so many tokens, on all layers: alone, and with each number of KV heads."""
    cache: Annotated[
        tuple[float, ...],
        Option("Also heads by layer, under such shares of the KV cache: 50%,25%.", parse=_each(share(1.0))),
    ] = ()
    """Also heads by layer (`--groups auto`), under such shares of the KV cache."""
    methods: Annotated[
        tuple[str, ...],
        Option(f"How a group becomes one head: some of {','.join(METHODS)}; or latent.", parse=listed_names),
    ] = ("mean", "aligned")
    """How a group becomes one head; `latent` is none of them, but a latent in the cache of as many KV heads."""
    refine: Annotated[
        tuple[Refinement | None, ...],
        Option(f"How far to improve each result on text: some of {','.join(_REFINEMENTS)}.", parse=_refinements),
    ] = (None,)
    grouping: GroupingName = "contiguous"
    data: Annotated[
        tuple[str, ...],
        Option(
            "Text to learn from, and without --eval-data to evaluate on a fifth of it; repeatable.",
            is_repeatable=True,
        ),
    ] = ()
    """Text: files, Hub data sets, or `self`. Without `eval_data` it is divided, a fifth of it to evaluate on."""
    eval_data: Annotated[
        tuple[str, ...],
        Option("Text to evaluate on; repeatable. The reference checkpoint has some of its own.", is_repeatable=True),
    ] = ()
    column: Column = None
    tokens: CalibrationTokens = 262_144
    eval_tokens: Annotated[
        int, Option("Tokens to evaluate on, at most: 32768, 50K.", parse=at_least(2), metavar="N")
    ] = 32_768
    context: Context = None
    batch_size: BatchSize = None
    steps: Steps = STEPS
    activation_memory: ActivationMemory = "8GB"
    max_ppl_increase: Annotated[
        float,
        Option("Largest increase of the perplexity to recommend, such as 2%.", parse=share(), metavar="SHARE"),
    ] = 0.01
    sensitivity: Annotated[
        bool,
        Option(
            "Also measure each layer converted alone: for each method as many evaluations as layers.",
            flags=("--sensitivity/--no-sensitivity",),
        ),
    ] = False
    dtype: Dtype = None
    device: Device = None
    seed: Seed = 0
    output: Annotated[
        Path | None, Option("File of the results, from which a later run goes on.", flags=("--output", "-o"))
    ] = None
    """File of the results, which a later run goes on from; None is `./<name>-sweep.json`."""
    keep: Annotated[Path | None, Option("Keep the converted checkpoints in this directory.", metavar="DIR")] = None
    report: Page = None
    force: Annotated[bool, Option("Replace the results of another sweep.")] = False
    as_json: ClassVar[AsJson] = False
    config: ClassVar[ConfigFile] = None
