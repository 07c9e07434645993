"""`mha2gqa convert`: fewer KV heads."""

import contextlib
from pathlib import Path

from mha2gqa.files.reader import read_checkpoint
from mha2gqa.files.source import find_source
from mha2gqa.hosts import rehost
from mha2gqa.progress import QUIET, Progress
from mha2gqa.targets.kv_heads import Wanted, fewest
from mha2gqa.targets.output import Request, carry_out
from mha2gqa.targets.plan import plan_convert
from mha2gqa.targets.report import ChangeReport
from mha2gqa.verbs.convert.conversion import Converted, converted_layers, is_layerwise
from mha2gqa.verbs.convert.options import ConvertOptions


def convert(options: ConvertOptions, progress: Progress = QUIET) -> ChangeReport:
    """Convert a checkpoint to fewer KV heads.

    Args:
        options: What to convert, and how.
        progress: Told of every run of bytes that is written, of everything that runs the model, and of each attention
            layer that a layer method has finished.

    Returns:
        What was done, or with `dry_run` what would be.

    Raises:
        Mha2GqaError: The request is refused; nothing has been written.
    """
    source = find_source(options.model)
    checkpoint = rehost(read_checkpoint(source.directory), fewest(options.groups))
    plan = plan_convert(checkpoint, options.groups)
    output = options.output or Path(f"{source.name}-{_suffix(options.groups)}")
    with contextlib.ExitStack() as stack:
        made = Converted()
        if is_layerwise(options):
            layers = converted_layers(options, source, checkpoint, plan, output, progress)
            made = stack.enter_context(layers)
            plan = plan_convert(checkpoint, options.groups, made.layers)
        request = Request(
            command="convert",
            options=options.recorded(),
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


def _suffix(groups: Wanted) -> str:
    """Return what the name of the output ends in: `gqa4`, `mqa`, `decoder8-cross4`."""
    if isinstance(groups, int):
        return "mqa" if groups == 1 else f"gqa{groups}"
    return "-".join(f"{part}{number}" for part, number in groups.items())
