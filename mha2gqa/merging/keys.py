"""Merges the keys of a layer; the queries take up what each head is multiplied with.

Rotary embedding turns each plane by an angle that depends on position alone, so a plane, read as one complex
row, may be multiplied by any complex number c when its queries are multiplied by 1/c̄. A norm over each head
leaves a sign per plane; one over all heads has a gain per channel, which takes up a real number. Rows that
are not rotated are merged as values are, with the queries in the place of the outputs.

Legend: as in `heads.py`, and G groups, R KV heads of a group, S query heads of a KV head, N rows of a plane.
"""

from dataclasses import replace

import torch

from mha2gqa.grouping import Groups
from mha2gqa.heads import AttentionHeads
from mha2gqa.merging.basis import share_basis
from mha2gqa.merging.planes import share_planes


def merge_keys(heads: AttentionHeads, groups: Groups, moment_XX: torch.Tensor | None) -> AttentionHeads:
    """Return the layer with one key head per group and its queries in the order of the groups.

    Args:
        heads: The layer.
        groups: Source KV heads of each KV head of the result.
        moment_XX: Second moment of the inputs; None is the identity.
    """
    order = torch.tensor(groups, device=heads.k_KEX.device)
    heads_GRS = heads.q_HEX.unflatten(0, (-1, heads.queries_per_head))[order]
    merge = _KeyMerge(heads, order, heads_GRS, moment_XX)
    planes, rest = heads.rotary.planes(), heads.rotary.rest(heads.k_KEX.shape[1])
    if heads.keys == "free":
        merge.turn(planes)
        merge.mix(rest.flatten())
    else:
        merge.scale(planes)
        merge.scale(rest)
    return merge.layer()


class _KeyMerge:
    """Fills the shared keys part by part, and changes the queries with them."""

    def __init__(
        self, heads: AttentionHeads, order: torch.Tensor, q_GRSEX: torch.Tensor, moment_XX: torch.Tensor | None
    ) -> None:
        self._heads, self._moment_XX = heads, moment_XX
        self._k_GREX = heads.k_KEX[order]
        self._q_GRSEX = q_GRSEX.clone()
        self._shared_GEX = self._k_GREX.new_zeros(len(order), *self._k_GREX.shape[2:])
        self._k_gain_GRE = None if heads.k_gain_KE is None else heads.k_gain_KE[order]
        self._q_gain_GRSE = None
        if heads.q_gain_HE is not None:
            self._q_gain_GRSE = heads.q_gain_HE.unflatten(0, (-1, heads.queries_per_head))[order].clone()
        if self._k_gain_GRE is not None:
            self._k_GREX = self._k_GREX * self._k_gain_GRE[..., None]

    def turn(self, planes_P2: torch.Tensor) -> None:
        """Merge rotary planes as complex rows."""
        if len(planes_P2) == 0:
            return
        first, second = planes_P2.T
        rows = torch.complex(self._k_GREX[:, :, first], self._k_GREX[:, :, second])
        merged = share_planes(rows[:, :, :, None], self._weight(planes_P2), self._moment_XX, "free")
        shared = merged.shared_GPNX.squeeze(2)
        self._shared_GEX[:, first], self._shared_GEX[:, second] = shared.real, shared.imag
        queries = torch.complex(self._q_GRSEX[:, :, :, first], self._q_GRSEX[:, :, :, second])
        queries = queries * merged.factor_GRP.conj()[:, :, None, :, None]
        self._q_GRSEX[:, :, :, first], self._q_GRSEX[:, :, :, second] = queries.real, queries.imag

    def mix(self, rows_U: torch.Tensor) -> None:
        """Merge rows that are not rotated as one block."""
        if len(rows_U) == 0:
            return
        queries = self._q_GRSEX[:, :, :, rows_U]
        energy = (_measured(queries, self._moment_XX) @ queries.mT).sum(dim=2)
        basis = share_basis(self._k_GREX[:, :, rows_U], energy, self._moment_XX)
        self._shared_GEX[:, rows_U] = basis.shared_GFX
        self._q_GRSEX[:, :, :, rows_U] = basis.lift_GRFF.mT[:, :, None] @ queries

    def scale(self, planes_PN: torch.Tensor) -> None:
        """Merge planes, each head's multiplied by a real number or a sign at most."""
        if len(planes_PN) == 0:
            return
        weight_GRP = self._weight(planes_PN)
        merged = share_planes(self._k_GREX[:, :, planes_PN], weight_GRP, self._moment_XX, self._heads.keys)
        self._shared_GEX[:, planes_PN] = merged.shared_GPNX
        factor = merged.factor_GRP[:, :, None, :, None]
        if self._q_gain_GRSE is not None:
            self._q_gain_GRSE[:, :, :, planes_PN] *= factor
        else:
            self._q_GRSEX[:, :, :, planes_PN] *= factor[..., None]

    def layer(self) -> AttentionHeads:
        """Return the merged layer."""
        merged = replace(self._heads, q_HEX=self._q_GRSEX.flatten(0, 2), k_KEX=self._shared_GEX)
        if self._k_gain_GRE is None or self._q_gain_GRSE is None:
            return merged
        gain_GE = self._k_gain_GRE.square().mean(dim=1).sqrt()
        k_GEX = self._shared_GEX / gain_GE.clamp(min=torch.finfo(gain_GE.dtype).tiny)[..., None]
        ratio = _root_mean_square(k_GEX, self._moment_XX) / _root_mean_square(self._heads.k_KEX, self._moment_XX)
        return replace(merged, k_KEX=k_GEX, k_gain_KE=gain_GE * ratio, q_gain_HE=self._q_gain_GRSE.flatten(0, 2))

    def _weight(self, planes_PN: torch.Tensor) -> torch.Tensor:
        """Return the root of the energy of the queries that meet each head's plane, `[G, R, P]`."""
        queries = self._q_GRSEX[:, :, :, planes_PN]
        energy_GRSPN = (_measured(queries, self._moment_XX) * queries).sum(dim=-1)
        if self._heads.keys == "normed":  # its queries have a norm of their own
            energy_GRSPN = energy_GRSPN / energy_GRSPN.sum(dim=(3, 4), keepdim=True)
        if self._q_gain_GRSE is not None:
            energy_GRSPN = energy_GRSPN * self._q_gain_GRSE[:, :, :, planes_PN].square()
        return energy_GRSPN.sum(dim=(2, 4)).sqrt()


def _measured(rows: torch.Tensor, moment_XX: torch.Tensor | None) -> torch.Tensor:
    return rows if moment_XX is None else rows @ moment_XX


def _root_mean_square(rows: torch.Tensor, moment_XX: torch.Tensor | None) -> torch.Tensor:
    return (_measured(rows, moment_XX) * rows).sum(dim=-1).mean().sqrt()
