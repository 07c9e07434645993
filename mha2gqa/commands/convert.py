"""`mha2gqa convert`: fewer KV heads."""

import contextlib
from pathlib import Path

from mha2gqa.checkpoint.reader import read_checkpoint
from mha2gqa.checkpoint.source import find_source
from mha2gqa.checkpoint.writer import Progress, ignore_progress
from mha2gqa.conversion import AUTO, Converted, converted_layers, is_layerwise
from mha2gqa.hosts import rehost
from mha2gqa.layerwise import Progress as Stages
from mha2gqa.layerwise import Tell
from mha2gqa.options import ConvertOptions
from mha2gqa.output import Request, carry_out
from mha2gqa.plan import plan_convert
from mha2gqa.report import ChangeReport


def convert(
    options: ConvertOptions,
    progress: Progress = ignore_progress,
    *,
    stages: Stages = lambda stage, size, total: None,
    tell: Tell = lambda layer, number, total: None,
) -> ChangeReport:
    """Convert a checkpoint to fewer KV heads.

    Args:
        options: What to convert, and how.
        progress: Told of every run of bytes that was written, and of how many there are in all.
        stages: Told of the progress of everything that runs the model.
        tell: Told of each attention layer that a layer method has finished.

    Returns:
        What was done, or with `dry_run` what would be.

    Raises:
        Mha2GqaError: The request is refused; nothing has been written.
    """
    source = find_source(options.model)
    checkpoint = rehost(read_checkpoint(source.directory), options.groups)
    plan = plan_convert(checkpoint, options.groups)
    output = options.output or Path(f"{source.name}-{'mqa' if options.groups == 1 else f'gqa{options.groups}'}")
    with contextlib.ExitStack() as stack:
        made = Converted()
        if is_layerwise(options):
            layers = converted_layers(options, source, checkpoint, plan, output, tell, stages)
            made = stack.enter_context(layers)
            plan = plan_convert(checkpoint, options.groups, made.layers)
        request = Request(
            command="convert",
            options=_recorded(options),
            output=output,
            method=options.method,
            seed=options.seed,
            max_shard_size=options.max_shard_size,
            force=options.force,
            dry_run=options.dry_run,
            layers=made.reports,
            text=made.text,
            trials=made.trials,
            divergence=made.divergence,
        )
        return carry_out(plan, source, checkpoint, request, progress)


def _recorded(options: ConvertOptions) -> dict[str, object]:
    """Return the options that change the result, by their names on the command line; those of text only with text."""
    recorded: dict[str, object] = {
        "groups": options.groups,
        "method": options.method,
        "grouping": options.grouping,
        "seed": options.seed,
    }
    trains = options.refine in ("distil", "joint") or options.method == AUTO
    if options.data or options.refine is not None or options.method == AUTO:
        used: dict[str, object] = {"data": list(options.data), "refine": options.refine, "column": options.column}
        used |= {"tokens": options.tokens, "context": options.context, "steps": options.steps if trains else None}
        used |= {"max-ppl-increase": options.max_ppl_increase if options.method == AUTO else None}
        used |= {"dtype": options.dtype, "device": options.device}
        recorded |= {name: value for name, value in used.items() if value not in (None, [])}
    return recorded
