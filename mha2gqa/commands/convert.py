"""`mha2gqa convert`: fewer KV heads."""

from pathlib import Path

from mha2gqa.checkpoint.reader import read_checkpoint
from mha2gqa.checkpoint.source import find_source
from mha2gqa.checkpoint.writer import Progress, ignore_progress
from mha2gqa.options import ConvertOptions
from mha2gqa.output import Request, carry_out
from mha2gqa.plan import plan_convert
from mha2gqa.report import ChangeReport


def convert(options: ConvertOptions, progress: Progress = ignore_progress) -> ChangeReport:
    """Convert a checkpoint to fewer KV heads.

    Args:
        options: What to convert, and how.
        progress: Told of every run of bytes that was written, and of how many there are in all.

    Returns:
        What was done, or with `dry_run` what would be.

    Raises:
        Mha2GqaError: The request is refused; nothing has been written.
    """
    source = find_source(options.model)
    checkpoint = read_checkpoint(source.directory)
    plan = plan_convert(checkpoint, options.groups)
    ending = "mqa" if options.groups == 1 else f"gqa{options.groups}"
    request = Request(
        command="convert",
        options={
            "groups": options.groups,
            "method": options.method,
            "grouping": options.grouping,
            "seed": options.seed,
        },
        output=options.output or Path(f"{source.name}-{ending}"),
        method=options.method,
        seed=options.seed,
        max_shard_size=options.max_shard_size,
        force=options.force,
        dry_run=options.dry_run,
    )
    return carry_out(plan, source, checkpoint, request, progress)
