"""Merges the keys of a group; the queries take up what each head is multiplied with.

Rotary embedding turns each plane by an angle that depends on position alone, so a plane, read as one complex
row, may be multiplied by any complex number c when its queries are multiplied by 1/c̄. A norm over each head
leaves a sign per plane; one over all heads has a gain per channel, which takes up a real number. Rows that
are not rotated are merged as values are, with the queries in the place of the outputs. Where the speeds of the
planes are known, the result is then improved over all planes at once (`distances.py`).

Legend: as in `heads.py`, with R KV heads of a group for K, S query heads of a KV head, N rows of a plane.
"""

from dataclasses import replace

import torch

from mha2gqa.heads import AttentionHeads, Statistics
from mha2gqa.merging.basis import share_basis
from mha2gqa.merging.distances import SharedKeys, fit_over_distances
from mha2gqa.merging.planes import share_planes
from mha2gqa.metric import Metric


def merge_keys(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    """Return a group with one key head, and its queries changed with it.

    Args:
        heads: The heads of a group.
        known: Of the inputs.
    """
    planes, rest = heads.rotary.planes(), heads.rotary.rest(heads.k_KEX.shape[1])
    if heads.keys == "free":
        return _FreeKeys(heads, known).merged(planes, rest.flatten())
    merge = _KeyMerge(heads, known)
    merge.scale(planes)
    merge.scale(rest)
    return merge.group()


class _FreeKeys:
    """Fills the shared keys part by part, and the matrix that takes each head's queries to them."""

    def __init__(self, heads: AttentionHeads, known: Statistics) -> None:
        self._heads, self._known = heads, known
        self._shared_EX = torch.zeros_like(heads.k_KEX[0])
        self._lift_REE = heads.k_KEX.new_zeros(*heads.k_KEX.shape[:2], heads.k_KEX.shape[1])

    def merged(self, planes_P2: torch.Tensor, rest_U: torch.Tensor) -> AttentionHeads:
        """Return the merged group."""
        if len(planes_P2):
            self._turn(planes_P2)
        if len(rest_U):
            self._mix(rest_U)
        shared = SharedKeys(self._shared_EX, self._lift_REE)
        rotary, keys_REX = self._heads.rotary, self._heads.k_KEX
        if rotary.frequencies and len(keys_REX) > 1:
            energy_REE = query_energies(self._heads, torch.arange(keys_REX.shape[1]), self._known.query_inputs)
            shared = fit_over_distances(keys_REX, energy_REE, self._lift_REE, rotary, self._known.inputs)
        q_RSEX = shared.lift_REE[:, None] @ _by_kv_head(self._heads, self._heads.q_HEX)
        return replace(self._heads, q_HEX=q_RSEX.flatten(0, 1), k_KEX=shared.shared_EX[None])

    def _turn(self, planes_P2: torch.Tensor) -> None:
        """Merge rotary planes as complex rows."""
        weight_RP = plane_weights(self._heads, planes_P2, self._known.query_inputs)
        merged = share_planes(self._heads.k_KEX[:, planes_P2], weight_RP, self._known.inputs, "free")
        self._shared_EX[planes_P2] = merged.shared_PNX
        (first, second), factor_RP = planes_P2.T, merged.factor_RP
        self._lift_REE[:, first, first] = self._lift_REE[:, second, second] = factor_RP.real
        self._lift_REE[:, first, second], self._lift_REE[:, second, first] = factor_RP.imag, -factor_RP.imag

    def _mix(self, rows_U: torch.Tensor) -> None:
        """Merge rows that are not rotated as one block."""
        energy_RUU = query_energies(self._heads, rows_U, self._known.query_inputs)
        basis = share_basis(self._heads.k_KEX[:, rows_U], energy_RUU, self._known.inputs)
        self._shared_EX[rows_U] = basis.shared_FX
        self._lift_REE[:, rows_U[:, None], rows_U] = basis.lift_RFF.mT


class _KeyMerge:
    """Fills shared keys whose planes each head may multiply by a real number or a sign at most."""

    def __init__(self, heads: AttentionHeads, known: Statistics) -> None:
        self._heads, self._known = heads, known
        self._k_REX = effective_keys(heads)
        self._q_RSEX = _by_kv_head(heads, heads.q_HEX).clone()
        self._q_gain_RSE = None if heads.q_gain_HE is None else _by_kv_head(heads, heads.q_gain_HE).clone()
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
    energy_KSPN = _by_kv_head(heads, query_inputs.energies(heads.q_HEX))[:, :, planes_PN]
    if heads.keys == "normed":  # its queries have a norm of their own
        energy_KSPN = energy_KSPN / energy_KSPN.sum(dim=(2, 3), keepdim=True)
    if heads.q_gain_HE is not None:
        energy_KSPN = energy_KSPN * _by_kv_head(heads, heads.q_gain_HE)[:, :, planes_PN].square()
    return energy_KSPN.sum(dim=(1, 3)).sqrt()


def query_energies(heads: AttentionHeads, rows_U: torch.Tensor, query_inputs: Metric) -> torch.Tensor:
    """Return the second moment of the queries that meet each head's unrotated keys, `[K, U, U]`."""
    return _by_kv_head(heads, query_inputs.gram(heads.q_HEX[:, rows_U])).sum(dim=1)


def effective_keys(heads: AttentionHeads) -> torch.Tensor:
    """Return the keys with the gains of a norm over all heads, `[K, E, X]`."""
    return heads.k_KEX if heads.k_gain_KE is None else heads.k_KEX * heads.k_gain_KE[..., None]


def _by_kv_head(heads: AttentionHeads, queries_H: torch.Tensor) -> torch.Tensor:
    queries_KS: torch.Tensor = queries_H.unflatten(0, (len(heads.k_KEX), -1))
    return queries_KS
