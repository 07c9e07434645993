"""Merging after using up every freedom that leaves a layer's function unchanged.

Values: the best shared block in the metric of the outputs that read it (`basis.py`), where they are free.
Keys: see `keys.py`. Without statistics the inputs count as uncorrelated and of equal size.
One group at a time: its matrices stay in the processor's cache, a whole layer's do not.

Legend: as in `heads.py`, with R KV heads of a group for K, and S query heads of a KV head.
"""

from dataclasses import replace

from mha2gqa.grouping import Groups
from mha2gqa.heads import NOTHING_KNOWN, AttentionHeads, Statistics, join
from mha2gqa.merging.basis import share_basis
from mha2gqa.merging.keys import merge_keys, resized_gains
from mha2gqa.merging.planes import share_planes
from mha2gqa.metric import Metric


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
    merged = join([_merge_values(merge_keys(one, known), known.inputs) for one in map(heads.members, groups)])
    return resized_gains(merged, heads, known.inputs)


def _merge_values(heads: AttentionHeads, inputs: Metric) -> AttentionHeads:
    """Merge a group's values; its keys are merged already."""
    v_RFX = heads.v_KFX
    o_RSDF = heads.o_HDF.unflatten(0, (len(v_RFX), -1))
    if heads.values == "free":
        columns = o_RSDF.flatten(1, 2)
        basis = share_basis(v_RFX, columns.mT @ columns, inputs)
        o_RSDF = o_RSDF @ basis.lift_RFF[:, None]
        return replace(heads, v_KFX=basis.shared_FX[None], o_HDF=o_RSDF.flatten(0, 1))
    weight_RF = o_RSDF.square().sum(dim=(1, 2)).sqrt()
    planes = share_planes(v_RFX[:, :, None], weight_RF, inputs, heads.values)
    o_RSDF = o_RSDF * planes.factor_RP[:, None, None]
    return replace(heads, v_KFX=planes.shared_PNX.squeeze(1)[None], o_HDF=o_RSDF.flatten(0, 1))
