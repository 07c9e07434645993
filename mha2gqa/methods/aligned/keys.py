"""Merges the keys of a group; the queries take up what each head is multiplied with.

Free keys have a file of their own (`free_keys.py`). A norm over each head leaves a sign per rotary plane; one over
all heads has a gain per channel, which takes up a real number.

Legend: as in `heads.py`, with R KV heads of a group for K, S query heads of a KV head, N rows of a plane.
"""

from dataclasses import replace

import torch

from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.heads.metric import Metric
from mha2gqa.methods.aligned.free_keys import by_kv_head, merge_free_keys
from mha2gqa.methods.aligned.planes import share_planes


def merge_keys(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    """Return a group with one key head, and its queries changed with it.

    Args:
        heads: The heads of a group.
        known: Of the inputs.
    """
    if heads.keys == "free":
        return merge_free_keys(heads, known)
    merge = _KeyMerge(heads, known)
    merge.scale(heads.rotary.planes())
    merge.scale(heads.rotary.rest(heads.k_KEX.shape[1]))
    return merge.group()


class _KeyMerge:
    """Fills shared keys whose planes each head may multiply by a real number or a sign at most."""

    def __init__(self, heads: AttentionHeads, known: Statistics) -> None:
        self._heads, self._known = heads, known
        self._k_REX = effective_keys(heads)
        self._q_RSEX = by_kv_head(heads, heads.q_HEX).clone()
        self._q_gain_RSE = None if heads.q_gain_HE is None else by_kv_head(heads, heads.q_gain_HE).clone()
        self._shared_EX = torch.zeros_like(self._k_REX[0])

    def scale(self, planes_PN: torch.Tensor) -> None:
        """Merge planes, or rows that are not rotated."""
        if len(planes_PN) == 0:
            return
        weight_RP = plane_weights(self._heads, planes_PN, self._known.query_inputs)
        merged = share_planes(self._k_REX[:, planes_PN], weight_RP, self._known.inputs, self._heads.keys)
        self._shared_EX[planes_PN] = merged.shared_PNX
        factor = merged.factor_RP[:, None, :, None]
        if self._q_gain_RSE is not None:
            self._q_gain_RSE[:, :, planes_PN] *= factor
        else:
            self._q_RSEX[:, :, planes_PN] *= factor[..., None]

    def group(self) -> AttentionHeads:
        """Return the merged group; the gains of norms over all heads are the heads' root mean square."""
        merged = replace(self._heads, q_HEX=self._q_RSEX.flatten(0, 1), k_KEX=self._shared_EX[None])
        if self._heads.k_gain_KE is None or self._q_gain_RSE is None:
            return merged
        gain_E = self._heads.k_gain_KE.square().mean(dim=0).sqrt()
        k_EX = self._shared_EX / gain_E.clamp(min=torch.finfo(gain_E.dtype).tiny)[:, None]
        return replace(merged, k_KEX=k_EX[None], k_gain_KE=gain_E[None], q_gain_HE=self._q_gain_RSE.flatten(0, 1))


def resized_gains(merged: AttentionHeads, heads: AttentionHeads, inputs: Metric) -> AttentionHeads:
    """Let the gains of a norm over all keys make up for the other size that it divides by now.

    Args:
        merged: The merged layer.
        heads: The layer before.
        inputs: Metric of the inputs.
    """
    if merged.k_gain_KE is None:
        return merged
    sizes = [inputs.energies(one.k_KEX).mean().sqrt() for one in (merged, heads)]
    return replace(merged, k_gain_KE=merged.k_gain_KE * (sizes[0] / sizes[1]))


def plane_weights(heads: AttentionHeads, planes_PN: torch.Tensor, query_inputs: Metric) -> torch.Tensor:
    """Return how much an error of each key plane matters: the root of its queries' energy, `[K, P]`."""
    energy_KSPN = by_kv_head(heads, query_inputs.energies(heads.q_HEX))[:, :, planes_PN]
    if heads.keys == "normed":  # its queries have a norm of their own
        energy_KSPN = energy_KSPN / energy_KSPN.sum(dim=(2, 3), keepdim=True)
    if heads.q_gain_HE is not None:
        energy_KSPN = energy_KSPN * by_kv_head(heads, heads.q_gain_HE)[:, :, planes_PN].square()
    return energy_KSPN.sum(dim=(1, 3)).sqrt()


def effective_keys(heads: AttentionHeads) -> torch.Tensor:
    """Return the keys with the gains of a norm over all heads, `[K, E, X]`."""
    return heads.k_KEX if heads.k_gain_KE is None else heads.k_KEX * heads.k_gain_KE[..., None]
