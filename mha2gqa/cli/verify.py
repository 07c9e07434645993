"""`mha2gqa verify`: its signature, and the exit code of its verdict."""

from typing import cast

import typer

from mha2gqa.cli import arguments
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.verbs.verify.options import Level, VerifyOptions


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
    min_cosine: arguments.LeastCosine = None,
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
    with quick_imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.verbs.verify.run import verify as run

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
        min_cosine=min_cosine,
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
