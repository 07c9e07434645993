"""The aligned merge: every freedom that leaves a layer's function unchanged is used up first.

`keys` and `values` merge a group's: what each head is multiplied with to be like the others, queries and outputs make
up for. `basis` shares a block of rows that may be multiplied by any matrix, `planes` one whose planes may be multiplied
by a number each, `distances` keys whose planes turn at known speeds; `loss` says what a merge of any heads would lose.

Without statistics the inputs count as uncorrelated and of equal size.
"""

from mha2gqa.heads.attention import NOTHING_KNOWN, AttentionHeads, Statistics, join
from mha2gqa.heads.grouping import Groups
from mha2gqa.methods.aligned.keys import merge_keys, resized_gains
from mha2gqa.methods.aligned.values import merge_values


def aligned(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """Merge each group's KV heads into the one that reproduces them best.

    Args:
        heads: The layer; small Gram matrices are decomposed in fp64 whatever its dtype.
        groups: Source KV heads of each KV head of the result, all of one size.
        statistics: What is known of the layer's inputs.

    Returns:
        The layer with one KV head per group; query heads in the order of the groups.
    """
    known = (statistics or NOTHING_KNOWN).like(heads.k_KEX)
    # One group at a time: its matrices stay in the processor's cache, a whole layer's do not.
    each = (_merged(heads.members(group), known.members(group, heads.queries_per_head)) for group in groups)
    merged = join(each, len(groups))
    # A norm over the keys of all heads sees all groups, so its gains come last.
    return resized_gains(merged, heads, known.inputs)


def _merged(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    return merge_values(merge_keys(heads, known), known)
