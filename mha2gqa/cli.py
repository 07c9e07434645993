"""The command line: typer signatures only; the options as types are in `arguments.py`.

Heavy imports stay inside the command bodies.

Exit codes: 0 done, 1 refused (one message on stderr), 2 wrong usage, 3 verify found the checkpoint different,
130 interrupted.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast

import typer

from mha2gqa import arguments
from mha2gqa.errors import KEPT, Interrupted, Mha2GqaError
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


@app.command()
def convert(
    groups: arguments.Groups,
    model: arguments.Model = None,
    output: arguments.Output = None,
    method: arguments.Method = "mean",
    grouping: arguments.GroupingName = "contiguous",
    refine: arguments.RefinementName = None,
    data: arguments.CalibrationText = None,
    column: arguments.Column = None,
    tokens: arguments.CalibrationTokens = 262_144,
    context: arguments.Context = None,
    steps: arguments.Steps = 300,
    activation_memory: arguments.ActivationMemory = "8GB",
    max_ppl_increase: arguments.ContentIncrease = 0.01,
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    seed: arguments.Seed = 0,
    max_shard_size: arguments.ShardSize = None,
    force: arguments.Force = False,
    dry_run: arguments.DryRun = False,
    as_json: arguments.AsJson = False,
    config: arguments.Config = None,
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
    max_shard_size: arguments.ShardSize = None,
    force: arguments.Force = False,
    dry_run: arguments.DryRun = False,
    as_json: arguments.AsJson = False,
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
def inspect(model: arguments.Model = None, as_json: arguments.AsJson = False) -> None:
    """Show what a checkpoint is, its KV cache for each possible G, and what convert would do."""
    with _imports():
        from mha2gqa import console
        from mha2gqa.commands.inspect import inspect as run

    report = run(InspectOptions(model=model))
    console.print_json(report.to_json()) if as_json else console.print_inspection(report)


@app.command()
def verify(
    converted: arguments.Converted = None,
    against: arguments.Against = None,
    data: arguments.ComparedText = None,
    column: arguments.Column = None,
    tokens: arguments.ComparedTokens = 32_768,
    context: arguments.Context = None,
    batch_size: arguments.BatchSize = None,
    level: arguments.LevelNames = None,
    max_ppl_increase: arguments.LargestIncrease = None,
    max_kl: arguments.LargestKl = None,
    min_top1: arguments.LeastTop1 = None,
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    seed: arguments.VerifySeed = 0,
    tasks: arguments.Tasks = None,
    task_path: arguments.TaskPath = None,
    report: arguments.ReportDirectory = None,
    write_card: arguments.WriteCard = False,
    as_json: arguments.AsJson = False,
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
        levels=cast(tuple[Level, ...], tuple(level or arguments.LEVELS)),
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

            kept = _kept(ending)
            print_error(f"Interrupted. {KEPT.format(kept)}." if kept else "Interrupted; nothing was left behind.")
        raise


def _kept(error: BaseException | None) -> str:
    """Return where the layers of an interrupted run stay, by what typer has made of the interruption."""
    while error is not None:
        if isinstance(error, Interrupted):
            return error.kept
        error = error.__cause__ or error.__context__
    return ""
