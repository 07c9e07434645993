"""A pooling as a method of a whole layer: where heads are sorted first, or refined afterwards."""

from dataclasses import replace

import torch

from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.heads.grouping import Groups
from mha2gqa.methods.kinds import LayerMethod, Pooling


def pooled(pooling: Pooling, seed: int) -> LayerMethod:
    """Return the layer method that pools keys and values, and leaves queries and outputs as they are.

    Args:
        pooling: Makes one head of a group's.
        seed: Of poolings that draw numbers.
    """

    def merge(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
        generator = torch.Generator(heads.k_KEX.device).manual_seed(seed)
        order = torch.tensor(groups, device=heads.k_KEX.device)

        def pool(heads_KN: torch.Tensor) -> torch.Tensor:
            merged = [pooling(heads_KN[group].flatten(1), generator) for group in order]
            return torch.stack(merged).view(-1, *heads_KN.shape[1:])

        def sort(heads_H: torch.Tensor) -> torch.Tensor:
            sorted_H: torch.Tensor = heads_H.unflatten(0, (-1, heads.queries_per_head))[order].flatten(0, 2)
            return sorted_H

        return replace(
            heads,
            q_HEX=sort(heads.q_HEX),
            k_KEX=pool(heads.k_KEX),
            v_KFX=pool(heads.v_KFX),
            o_HDF=sort(heads.o_HDF),
            q_gain_HE=None if heads.q_gain_HE is None else sort(heads.q_gain_HE),
            k_gain_KE=None if heads.k_gain_KE is None else pool(heads.k_gain_KE),
        )

    return merge
