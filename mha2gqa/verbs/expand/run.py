"""`mha2gqa expand`: more KV heads, without loss."""

from mha2gqa.files.reader import read_checkpoint
from mha2gqa.files.source import find_source
from mha2gqa.progress import QUIET, Progress
from mha2gqa.targets.output import Request, carry_out
from mha2gqa.targets.plan import plan_expand
from mha2gqa.targets.report import ChangeReport
from mha2gqa.verbs.convert.options import ExpandOptions


def expand(options: ExpandOptions, progress: Progress = QUIET) -> ChangeReport:
    """Repeat the KV heads of a checkpoint, up to one per query head.

    The outputs stay the same; engines that need MHA, or a tensor-parallel size above the number of KV
    heads, can then load it. Converting back with `first` or `mean` gives the original bytes.

    Args:
        options: What to expand, and to what.
        progress: Told of every run of bytes that is written.

    Returns:
        What was done, or with `dry_run` what would be.

    Raises:
        Mha2GqaError: The request is refused; nothing has been written.
    """
    source = find_source(options.model)
    checkpoint = read_checkpoint(source.directory)
    plan = plan_expand(checkpoint, options.heads)
    request = Request(
        command="expand",
        options={"heads": plan.target_heads},
        output=options.output,
        method="first",
        seed=0,
        max_shard_size=options.max_shard_size,
        force=options.force,
        dry_run=options.dry_run,
    )
    return carry_out(plan, source, checkpoint, request, progress)
