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
from mha2gqa.heads import AttentionHeads, Statistics
from mha2gqa.merging.basis import share_basis
from mha2gqa.merging.planes import share_planes


def merge_keys(heads: AttentionHeads, groups: Groups, statistics: Statistics | None) -> AttentionHeads:
    """Return the layer with one key head per group and its queries in the order of the groups.

    Args:
        heads: The layer.
        groups: Source KV heads of each KV head of the result.
        statistics: Of the inputs; None treats them as uncorrelated and of equal size.
    """
    merge = _KeyMerge(heads, torch.tensor(groups, device=heads.k_KEX.device), statistics)
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

    def __init__(self, heads: AttentionHeads, order_GR: torch.Tensor, statistics: Statistics | None) -> None:
        self._heads, self._order = heads, order_GR
        self._moment_XX = None if statistics is None else statistics.moment_XX
        self._query_XX = None if statistics is None else statistics.query_moment_XX
        self._k_GREX = effective_keys(heads)[order_GR]
        self._q_GRSEX = _queries(heads)[order_GR]
        self._q_gain_GRSE = None
        if heads.q_gain_HE is not None:
            self._q_gain_GRSE = heads.q_gain_HE.unflatten(0, (-1, heads.queries_per_head))[order_GR]
        self._shared_GEX = self._k_GREX.new_zeros(len(order_GR), *self._k_GREX.shape[2:])

    def turn(self, planes_P2: torch.Tensor) -> None:
        """Merge rotary planes as complex rows."""
        if len(planes_P2) == 0:
            return
        first, second = planes_P2.T
        rows = torch.complex(self._k_GREX[:, :, first], self._k_GREX[:, :, second])
        weight_GRP = plane_weights(self._heads, planes_P2, self._query_XX)[self._order]
        merged = share_planes(rows[:, :, :, None], weight_GRP, self._moment_XX, "free")
        shared = merged.shared_GPNX.squeeze(2)
        self._shared_GEX[:, first], self._shared_GEX[:, second] = shared.real, shared.imag
        queries = torch.complex(self._q_GRSEX[:, :, :, first], self._q_GRSEX[:, :, :, second])
        queries = queries * merged.factor_GRP.conj()[:, :, None, :, None]
        self._q_GRSEX[:, :, :, first], self._q_GRSEX[:, :, :, second] = queries.real, queries.imag

    def mix(self, rows_U: torch.Tensor) -> None:
        """Merge rows that are not rotated as one block."""
        if len(rows_U) == 0:
            return
        energy_GRUU = query_energies(self._heads, rows_U, self._query_XX)[self._order]
        basis = share_basis(self._k_GREX[:, :, rows_U], energy_GRUU, self._moment_XX)
        self._shared_GEX[:, rows_U] = basis.shared_GFX
        self._q_GRSEX[:, :, :, rows_U] = basis.lift_GRFF.mT[:, :, None] @ self._q_GRSEX[:, :, :, rows_U]

    def scale(self, planes_PN: torch.Tensor) -> None:
        """Merge planes, each head's multiplied by a real number or a sign at most."""
        if len(planes_PN) == 0:
            return
        weight_GRP = plane_weights(self._heads, planes_PN, self._query_XX)[self._order]
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
        if self._heads.k_gain_KE is None or self._q_gain_GRSE is None:
            return merged
        gain_GE = self._heads.k_gain_KE[self._order].square().mean(dim=1).sqrt()
        k_GEX = self._shared_GEX / gain_GE.clamp(min=torch.finfo(gain_GE.dtype).tiny)[..., None]
        ratio = _root_mean_square(k_GEX, self._moment_XX) / _root_mean_square(self._heads.k_KEX, self._moment_XX)
        return replace(merged, k_KEX=k_GEX, k_gain_KE=gain_GE * ratio, q_gain_HE=self._q_gain_GRSE.flatten(0, 2))


def plane_weights(heads: AttentionHeads, planes_PN: torch.Tensor, query_XX: torch.Tensor | None) -> torch.Tensor:
    """Return how much an error of each key plane matters: the root of its queries' energy, `[K, P]`."""
    queries = _queries(heads)[:, :, planes_PN]
    energy_KSPN = (_measured(queries, query_XX) * queries).sum(dim=-1)
    if heads.keys == "normed":  # its queries have a norm of their own
        energy_KSPN = energy_KSPN / energy_KSPN.sum(dim=(2, 3), keepdim=True)
    if heads.q_gain_HE is not None:
        gains = heads.q_gain_HE.unflatten(0, (-1, heads.queries_per_head))
        energy_KSPN = energy_KSPN * gains[:, :, planes_PN].square()
    return energy_KSPN.sum(dim=(1, 3)).sqrt()


def query_energies(heads: AttentionHeads, rows_U: torch.Tensor, query_XX: torch.Tensor | None) -> torch.Tensor:
    """Return the second moment of the queries that meet each head's unrotated keys, `[K, U, U]`."""
    queries = _queries(heads)[:, :, rows_U]
    return (_measured(queries, query_XX) @ queries.mT).sum(dim=1)


def effective_keys(heads: AttentionHeads) -> torch.Tensor:
    """Return the keys with the gains of a norm over all heads, `[K, E, X]`."""
    return heads.k_KEX if heads.k_gain_KE is None else heads.k_KEX * heads.k_gain_KE[..., None]


def _queries(heads: AttentionHeads) -> torch.Tensor:
    queries_KSEX: torch.Tensor = heads.q_HEX.unflatten(0, (-1, heads.queries_per_head))
    return queries_KSEX


def _measured(rows: torch.Tensor, moment_XX: torch.Tensor | None) -> torch.Tensor:
    return rows if moment_XX is None else rows @ moment_XX.to(rows.dtype)


def _root_mean_square(rows: torch.Tensor, moment_XX: torch.Tensor | None) -> torch.Tensor:
    size: torch.Tensor = (_measured(rows, moment_XX) * rows).sum(dim=-1).mean().sqrt()
    return size
