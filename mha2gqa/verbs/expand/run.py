"""`mha2gqa expand`: more KV heads, without loss."""

from mha2gqa.model.original import Original
from mha2gqa.progress import QUIET, Progress
from mha2gqa.record.carry import Request, carry_out
from mha2gqa.record.conversion import Outcome
from mha2gqa.targets.expand import Expand
from mha2gqa.targets.plan import make_plan
from mha2gqa.verbs.expand.options import ExpandOptions


def expand(options: ExpandOptions, progress: Progress = QUIET) -> Outcome:
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
    original, target = Original.find(options.model), Expand(options.heads)
    plan = make_plan(target.host(original), target)
    (heads,) = plan.change.facts
    request = Request(
        command="expand",
        target=target,
        options={"heads": heads.after},
        output=options.output,
        max_shard_size=options.max_shard_size,
        force=options.force,
        dry_run=options.dry_run,
    )
    return carry_out(plan, request, progress)
