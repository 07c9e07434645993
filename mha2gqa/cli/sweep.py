"""`mha2gqa sweep`: its signature; lists are separated by commas."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from mha2gqa.cli import arguments
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.methods import METHODS
from mha2gqa.verbs.convert.options import Grouping, Refinement
from mha2gqa.verbs.sweep.options import SweepOptions

_NONE = "none"
_REFINEMENTS = (_NONE, *get_args(Refinement))

GroupsList = Annotated[
    str | None, typer.Option("--groups", "-g", help="KV heads of the results: 8,4,2,1. Default: all that are possible.")
]
Methods = Annotated[str, typer.Option(help=f"How a group becomes one head: some of {','.join(METHODS)}.")]
Refinements = Annotated[
    str, typer.Option(help=f"How far to improve each result on text: some of {','.join(_REFINEMENTS)}.")
]
SweptText = Annotated[
    list[str] | None,
    typer.Option(help="Text to learn from, and without --eval-data to evaluate on a fifth of it; repeatable."),
]
EvaluationText = Annotated[list[str] | None, typer.Option(help="Text to evaluate on; repeatable.")]
EvaluationTokens = Annotated[
    int, typer.Option(parser=arguments.at_least(2), metavar="N", help="Tokens to evaluate on, at most: 32768, 50K.")
]
RecommendedIncrease = Annotated[
    float,
    typer.Option(
        parser=arguments.share(), metavar="SHARE", help="Largest increase of the perplexity to recommend, such as 2%."
    ),
]
Sensitivity = Annotated[bool, typer.Option(help="Also measure each layer converted alone.")]
Results = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File of the results, from which a later run goes on.", show_default=False),
]
Keep = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the converted checkpoints in this directory.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace the results of another sweep.")]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(map(int, _listed(text or "")))
    except ValueError as error:
        raise typer.BadParameter(f"--groups {text} is no list of whole numbers, such as 8,4,2,1") from error


def _refinements(text: str) -> tuple[Refinement | None, ...]:
    if unknown := [name for name in _listed(text) if name not in _REFINEMENTS]:
        raise typer.BadParameter(f"--refine {unknown[0]!r} is not one of {', '.join(_REFINEMENTS)}")
    return tuple(None if name == _NONE else cast(Refinement, name) for name in _listed(text))


@app.command()
def sweep(
    model: arguments.Model = None,
    groups: GroupsList = None,
    methods: Methods = "mean,aligned",
    refine: Refinements = _NONE,
    grouping: arguments.GroupingName = "contiguous",
    data: SweptText = None,
    eval_data: EvaluationText = None,
    column: arguments.Column = None,
    tokens: arguments.CalibrationTokens = 262_144,
    eval_tokens: EvaluationTokens = 32_768,
    context: arguments.Context = None,
    batch_size: arguments.BatchSize = None,
    steps: arguments.Steps = 300,
    activation_memory: arguments.ActivationMemory = "8GB",
    max_ppl_increase: RecommendedIncrease = 0.01,
    sensitivity: Sensitivity = True,
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    seed: arguments.Seed = 0,
    output: Results = None,
    keep: Keep = None,
    report: arguments.ReportDirectory = None,
    force: Replace = False,
    as_json: arguments.AsJson = False,
    config: arguments.Config = None,
) -> None:
    """Convert in many ways, measure each on held-out text, and say which number of groups to take."""
    options = SweepOptions(
        model=model,
        groups=_numbers(groups),
        methods=_listed(methods),
        refine=_refinements(refine),
        grouping=cast(Grouping, grouping),
        data=tuple(data or ()),
        eval_data=tuple(eval_data or ()),
        column=column,
        tokens=tokens,
        eval_tokens=eval_tokens,
        context=context,
        batch_size=batch_size,
        steps=steps,
        activation_memory=activation_memory,
        max_ppl_increase=max_ppl_increase,
        sensitivity=sensitivity,
        dtype=dtype,
        device=device,
        seed=seed,
        output=output,
        keep=keep,
        report=report,
        force=force,
    )
    with quick_imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.verbs.sweep.run import sweep as run

    logging.disable_progress_bar()
    with console.sweeping() as progress:
        result = run(options, progress)
    console.print_json(result.to_json()) if as_json else console.print_sweep(result)
    if report is not None:
        console.print_note(f"The page is {report / 'report.html'}")
