"""Merging after using up every freedom that leaves a layer's function unchanged.

Values: the best shared block in the metric of the outputs that read it (`basis.py`), where they are free.
Keys: see `keys.py`. Without statistics the inputs count as uncorrelated and of equal size.

Legend: as in `heads.py`, and G groups, R KV heads of a group, S query heads of a KV head.
"""

from dataclasses import replace

import torch

from mha2gqa.grouping import Groups
from mha2gqa.heads import AttentionHeads, Statistics
from mha2gqa.merging.basis import share_basis
from mha2gqa.merging.keys import merge_keys
from mha2gqa.merging.planes import share_planes


def aligned(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """Merge each group's KV heads into the one that reproduces them best.

    Args:
        heads: The layer; small Gram matrices are decomposed in fp64 whatever its dtype.
        groups: Source KV heads of each KV head of the result, all of one size.
        statistics: What is known of the layer's inputs.

    Returns:
        The layer with one KV head per group; query heads in the order of the groups.
    """
    moment_XX = None if statistics is None else statistics.moment_XX
    return _merge_values(merge_keys(heads, groups, statistics), heads, groups, moment_XX)


def _merge_values(
    merged: AttentionHeads, heads: AttentionHeads, groups: Groups, moment_XX: torch.Tensor | None
) -> AttentionHeads:
    order = torch.tensor(groups, device=heads.v_KFX.device)
    v_GRFX = heads.v_KFX[order]
    o_GRSDF = heads.o_HDF.unflatten(0, (-1, heads.queries_per_head))[order]
    if heads.values == "free":
        columns = o_GRSDF.flatten(2, 3)
        basis = share_basis(v_GRFX, columns.mT @ columns, moment_XX)
        o_GRSDF = o_GRSDF @ basis.lift_GRFF[:, :, None]
        return replace(merged, v_KFX=basis.shared_GFX, o_HDF=o_GRSDF.flatten(0, 2))
    weight_GRF = o_GRSDF.square().sum(dim=(2, 3)).sqrt()
    planes = share_planes(v_GRFX[:, :, :, None], weight_GRF, moment_XX, heads.values)
    o_GRSDF = o_GRSDF * planes.factor_GRP[:, :, None, None]
    return replace(merged, v_KFX=planes.shared_GPNX.squeeze(2), o_HDF=o_GRSDF.flatten(0, 2))
