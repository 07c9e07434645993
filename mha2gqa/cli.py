"""The command line: typer signatures only. Heavy imports stay inside the command bodies.

Exit codes: 0 done, 1 refused (one message on stderr), 2 wrong usage, 3 verify found the checkpoint different,
130 interrupted.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from mha2gqa.errors import Mha2GqaError
from mha2gqa.merging import METHODS
from mha2gqa.options import ConvertOptions, ExpandOptions, Grouping, InspectOptions, Level, Refinement, VerifyOptions

app = typer.Typer(
    help="Convert a multi-head attention checkpoint to grouped-query (GQA) or multi-query attention (MQA).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Import without collecting garbage, which costs a fifth of the start-up of torch and transformers."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return an option's check that its value is one of `names`."""

    def check(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return check


def _one_of_or_none(names: Iterable[str]) -> Callable[[str | None], str | None]:
    check = _one_of(names)
    return lambda value: None if value is None else check(value)


_METHODS = (*METHODS, "auto")
_GROUPINGS = get_args(Grouping)
_REFINEMENTS = get_args(Refinement)
_LEVELS = get_args(Level)
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of the other options from a YAML file."""
    if path is not None:
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise typer.BadParameter(f"{path} cannot be read: {error}") from error
        known = {parameter.name for parameter in context.command.params}
        if not isinstance(content, dict) or not set(content) <= known:
            raise typer.BadParameter(f"{path} must map these names to values: {', '.join(sorted(map(str, known)))}")
        context.default_map = {**(context.default_map or {}), **content}
    return path


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
    Path | None, typer.Option(help="YAML file with values for these options.", callback=_read_config, is_eager=True)
]


@app.command()
def convert(
    groups: Annotated[int, typer.Option("--groups", "-g", help="KV heads of the result (1 makes MQA).")],
    model: Model = None,
    output: Output = None,
    method: Annotated[
        str, typer.Option(help="How a group becomes one head.", metavar="|".join(_METHODS), callback=_one_of(_METHODS))
    ] = "mean",
    grouping: Annotated[
        str, typer.Option(help="Which heads share one.", metavar="|".join(_GROUPINGS), callback=_one_of(_GROUPINGS))
    ] = "contiguous",
    refine: Annotated[
        str | None,
        typer.Option(
            help="Improve the result on text: refit outputs, train each layer, train all of them together.",
            metavar="|".join(_REFINEMENTS),
            callback=_one_of_or_none(_REFINEMENTS),
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Calibration text: text, jsonl, csv, parquet, Hub data set, or `self`; repeatable."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of tables that holds the text.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of calibration text, at most.")] = 262_144,
    context: Annotated[int | None, typer.Option(help="Tokens of a block. Default: the model's, up to 2048.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of --refine distil and joint.")] = 300,
    activation_memory: Annotated[str, typer.Option(help="Activations in memory; the rest goes to disk.")] = "8GB",
    max_ppl_increase: Annotated[
        float, typer.Option(min=0, help="What --method auto is content with: 0.01 is one per cent.")
    ] = 0.01,
    dtype: Annotated[
        str | None, typer.Option(help="To run in.", metavar="|".join(_DTYPES), callback=_one_of_or_none(_DTYPES))
    ] = None,
    device: Annotated[str | None, typer.Option(help="To run on. Default: an accelerator, else the CPU.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that draws numbers.")] = 0,
    max_shard_size: ShardSize = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Convert a checkpoint to fewer KV heads."""
    with _imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.commands.convert import convert as run

    logging.disable_progress_bar()
    options = ConvertOptions(
        model=model,
        groups=groups,
        output=output,
        method=method,
        grouping=cast(Grouping, grouping),
        refine=cast(Refinement | None, refine),
        data=tuple(data or ()),
        column=column,
        tokens=tokens,
        context=context,
        steps=steps,
        activation_memory=activation_memory,
        max_ppl_increase=max_ppl_increase,
        dtype=dtype,
        device=device,
        seed=seed,
        max_shard_size=max_shard_size,
        force=force,
        dry_run=dry_run,
    )
    with console.conversion() as watch:
        report = run(options, watch.bytes_written, stages=watch.stage, tell=watch.layer)
    console.print_json(report.to_json()) if as_json else console.print_change(report)


@app.command()
def expand(
    model: Annotated[str, typer.Argument(help="Directory or Hub id (org/name, org/name@revision).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create.")],
    heads: Annotated[int | None, typer.Option(help="KV heads of the result. Default: one per query head.")] = None,
    max_shard_size: ShardSize = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Repeat the KV heads of a checkpoint, without loss."""
    with _imports():
        from mha2gqa import console
        from mha2gqa.commands.expand import expand as run

    options = ExpandOptions(
        model=model, heads=heads, output=output, max_shard_size=max_shard_size, force=force, dry_run=dry_run
    )
    with console.progress_bar("expanding") as progress:
        report = run(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_change(report)


@app.command()
def inspect(model: Model = None, as_json: AsJson = False) -> None:
    """Show what a checkpoint is, its KV cache for each possible G, and what convert would do."""
    with _imports():
        from mha2gqa import console
        from mha2gqa.commands.inspect import inspect as run

    report = run(InspectOptions(model=model))
    console.print_json(report.to_json()) if as_json else console.print_inspection(report)


def _check_levels(values: list[str] | None) -> list[str]:
    for value in values or []:
        _one_of(_LEVELS)(value)
    return values or []


@app.command()
def verify(
    converted: Annotated[
        Path | None, typer.Argument(help="Converted checkpoint. Default: the one directory here with a record.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Original. Default: what the record names.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Text, jsonl, csv or parquet file, Hub data set, or `self`; repeatable.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of tables that holds the text.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to compare the outputs on.")] = 32_768,
    context: Annotated[int | None, typer.Option(help="Tokens of a block. Default: the model's, up to 2048.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Blocks at a time. Default: 2048 tokens.")] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(help="What to verify; repeatable.", metavar="|".join(_LEVELS), callback=_check_levels),
    ] = None,
    max_ppl_increase: Annotated[
        float | None, typer.Option(min=0, help="Largest increase of the perplexity. Default: 0.01, one per cent.")
    ] = None,
    max_kl: Annotated[float | None, typer.Option(min=0, help="Largest mean KL, nats a token. Default: 0.05.")] = None,
    min_top1: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least share of equal most likely tokens. Default: 0.9.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="To run in.", metavar="|".join(_DTYPES), callback=_one_of_or_none(_DTYPES))
    ] = None,
    device: Annotated[str | None, typer.Option(help="To run on. Default: an accelerator, else the CPU.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampled text and of the bootstrap.")] = 0,
    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks of lm-evaluation-harness, such as hellaswag,piqa.")
    ] = None,
    task_path: Annotated[Path | None, typer.Option(help="Directory of further task definitions.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the page report.html into this directory.")
    ] = None,
    write_card: Annotated[
        bool, typer.Option("--write-card", help="Add the numbers to the converted checkpoint's README.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold a converted checkpoint against its original: files, loading, outputs."""
    with _imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.commands.verify import verify as run

    names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    if (tasks is not None or task_path is not None) and not names:
        raise typer.BadParameter("--tasks needs the name of a benchmark; --task-path says where more of them are")
    logging.disable_progress_bar()
    options = VerifyOptions(
        converted=converted,
        against=against,
        data=tuple(data or ()),
        column=column,
        tokens=tokens,
        context=context,
        batch_size=batch_size,
        levels=cast(tuple[Level, ...], tuple(level or _LEVELS)),
        max_ppl_increase=max_ppl_increase,
        max_kl=max_kl,
        min_top1=min_top1,
        dtype=dtype,
        device=device,
        seed=seed,
        tasks=names,
        task_path=task_path,
        report=report,
        write_card=write_card,
    )
    with console.stages() as progress:
        result = run(options, progress)
    console.print_json(result.to_json()) if as_json else console.print_verification(result)
    if report is not None:
        console.print_note(f"The page is {report / 'report.html'}")
    if result.verdict == "different":
        raise typer.Exit(3)


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Where the converted checkpoints go.")] = Path("demo"),
    tokens: Annotated[int, typer.Option(help="Tokens of held-out text to evaluate on.")] = 50_000,
) -> None:
    """Inspect, convert and verify the reference checkpoint, and show what that saved and what it cost."""
    with _imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.commands.demo import describe, measure, prove

    logging.disable_progress_bar()
    console.print_inspection(describe())
    console.print_demo(measure(directory, tokens))
    with console.stages() as progress:
        report = prove(directory, tokens, progress)
    console.print_verification(report)
    console.print_note(f"The page is {directory / 'report.html'}")


def main() -> None:
    """Run the command line; a refusal is one message and exit code 1, a bug keeps its traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries; read when tqdm is imported
    try:
        app()
    except Mha2GqaError as error:
        from mha2gqa.console import print_error

        print_error(str(error))
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == 130:  # typer turns Ctrl-C into this
            from mha2gqa.console import print_error

            print_error("Interrupted; nothing was left behind.")
        raise
