"""Merges the keys of a group; the queries take up what each head is multiplied with.

*Free keys*, which no norm holds. Rotary embedding turns each plane by an angle that depends on position alone, so a
plane, read as one complex row, may be multiplied by any complex number c when its queries are multiplied by 1/c̄. Rows
that are not rotated are merged as values are, with the queries in the place of the outputs. Where the speeds of the
planes are known, the result is then improved over all planes at once (`distances.py`). All of it follows from two kinds
of small matrices, one Gram matrix of the rows of all heads and the second moments of the queries that meet them, so a
merge is also known by what it loses before it is made (`refine/merge.py`).

*Held keys*. A norm over each head leaves a sign per rotary plane; one over all heads has a gain per channel, which
takes up a real number.

Legend: as in `heads/attention.py`, with R KV heads of a group for K, S query heads of a KV head, N rows of a plane.
"""

from dataclasses import replace

import torch

from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.metric import Metric
from mha2gqa.methods.aligned.basis import share_basis
from mha2gqa.methods.aligned.distances import SharedKeys, fit_over_distances, pairs
from mha2gqa.methods.aligned.planes import complex_grams, leading_vectors, share_planes, tiny


def merge_keys(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    """Return a group with one key head, and its queries changed with it.

    Args:
        heads: The heads of a group.
        known: Of the inputs.
    """
    if heads.keys == "free":
        return _merge_free(heads, known)
    merge = _HeldKeys(heads, known)
    merge.scale(heads.rotary.planes())
    merge.scale(heads.rotary.rest(heads.k_KEX.shape[1]))
    return merge.group()


def _merge_free(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    keys_REX, rows = heads.k_KEX, heads.k_KEX.flatten(0, 1)
    gram, energy_REE = known.inputs.gram(rows), query_energies(heads, known.query_inputs)
    keys = share_plane_by_plane(keys_REX, gram, energy_REE, heads.rotary)
    # Over all distances planes are best merged each by itself, which is where the fit begins; one head is its own best.
    if heads.rotary.frequencies and len(keys_REX) > 1:
        keys, _ = fit_over_distances(keys, gram, energy_REE, heads.rotary)
    shared_EX = keys.mixing @ rows
    scale_E1 = _scale(shared_EX, keys_REX, heads.rotary)[:, None]
    # With k_h ≈ Lᵀ s, q·k_h ≈ (L q)·s: queries are multiplied with what the keys were divided by.
    q_RSEX = (keys.lift_REE / scale_E1)[:, None] @ by_kv_head(heads, heads.q_HEX)
    return replace(heads, q_HEX=q_RSEX.flatten(0, 1), k_KEX=(shared_EX * scale_E1)[None])


def share_plane_by_plane(
    keys_REX: torch.Tensor, gram: torch.Tensor, energy_REE: torch.Tensor, rotary: Rotary
) -> SharedKeys:
    """Merge each rotary plane by itself as complex rows, and rows that are not rotated as one block.

    Args:
        keys_REX: Keys of the heads of a group.
        gram: Gram matrix of their rows in the metric of the inputs, `[R·E, R·E]`.
        energy_REE: `query_energies`.
        rotary: Which rows are rotated.
    """
    heads, width = keys_REX.shape[:2]
    planes_P2, rest_U = rotary.planes(), rotary.rest(width).flatten()
    mixing_ERE, lift_REE = gram.new_zeros(width, heads, width), torch.zeros_like(energy_REE)
    if len(planes_P2):
        # Over all angles a query meets both rows of a plane alike, so of its energy on them only the sum matters.
        weight_RP = energy_REE.diagonal(dim1=1, dim2=2)[:, planes_P2].sum(dim=-1).sqrt()
        # With u the leading eigenvector of the weighted rows' Gram matrix, w_h z_h ≈ u_h s for s = Σ ū_h w_h z_h. So a
        # head's plane is c s with c = u_h / w_h, and Re(q̄ c s) is the score of c̄ q with s.
        vector_RP = leading_vectors(complex_grams(gram, planes_P2, weight_RP))
        _as_matrices(mixing_ERE.transpose(0, 1), planes_P2, vector_RP.conj() * weight_RP)
        _as_matrices(lift_REE, planes_P2, (vector_RP / weight_RP.clamp(min=tiny(weight_RP))).conj())
    if len(rest_U):
        rows = rows_of_heads(torch.arange(heads), width).view(heads, width)[:, rest_U].flatten()
        # Block-diagonal, unlike that of values: scores of different heads are never added up.
        weight = torch.block_diag(*energy_REE[:, rest_U[:, None], rest_U])
        basis = share_basis(keys_REX[:, rest_U], weight, gram[rows[:, None], rows])
        mixing_ERE.flatten(1)[rest_U[:, None], rows] = basis.mixing
        lift_REE[:, rest_U[:, None], rest_U] = basis.lift_RFF.mT
    return SharedKeys(mixing_ERE.flatten(1), lift_REE)


def query_energies(heads: AttentionHeads, query_inputs: Metric) -> torch.Tensor:
    """Return the second moment of the queries that meet each head's keys, `[K, E, E]`."""
    return by_kv_head(heads, query_inputs.gram(heads.q_HEX)).sum(dim=1)


def rows_of_heads(heads: torch.Tensor, width: int) -> torch.Tensor:
    """Return the places of some heads' rows among those of all heads, `[R·E]`."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def by_kv_head(heads: AttentionHeads, queries_H: torch.Tensor) -> torch.Tensor:
    """Return what belongs to query heads, `[H, ...]`, by the KV head that they read: `[K, S, ...]`."""
    queries_KS: torch.Tensor = queries_H.unflatten(0, (len(heads.k_KEX), -1))
    return queries_KS


def _as_matrices(into_REE: torch.Tensor, planes_P2: torch.Tensor, factor_RP: torch.Tensor) -> None:
    """Write what multiplies complex rows as what multiplies their two real ones: a + bi is [[a, -b], [b, a]]."""
    first, second = planes_P2.T
    into_REE[:, first, first] = into_REE[:, second, second] = factor_RP.real
    into_REE[:, first, second], into_REE[:, second, first] = -factor_RP.imag, factor_RP.imag


def _scale(shared_EX: torch.Tensor, keys_REX: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Return what gives each pair of rows the heads' length, `[E]`: 16-bit weights and caches keep their range."""
    # One number for both rows of a plane: rotation mixes them, so the queries can make up for no other.
    pairs_P2 = pairs(rotary, len(shared_EX))
    wanted_P, now_P = (one.square().sum(dim=-1)[..., pairs_P2].sum(dim=-1).sqrt() for one in (keys_REX, shared_EX))
    scale_P = wanted_P.square().mean(dim=0).sqrt() / now_P
    scale_E = torch.ones_like(shared_EX[:, 0])
    # Planes of zeros (a head that was pruned) are 0/0 or 0: they stay.
    scale_E[pairs_P2] = torch.where(scale_P.isfinite() & (scale_P > 0), scale_P, torch.ones_like(scale_P))[:, None]
    return scale_E


class _HeldKeys:
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
        # Real numbers are their own conjugates: with k_h ≈ c s, queries take c. Behind a norm over all heads they take
        # it in its gain; in the weights it would change the size that the norm divides all heads by.
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
        # The shared rows hold gain times weight. How they are divided up again is free up to the size that the norm
        # sees, which `resized_gains` makes up for when all groups are merged.
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
    # An RMS norm divides by the root mean square of all keys, token by token; only its mean over tokens is known.
    sizes = [inputs.energies(one.k_KEX).mean().sqrt() for one in (merged, heads)]
    return replace(merged, k_gain_KE=merged.k_gain_KE * (sizes[0] / sizes[1]))


def plane_weights(heads: AttentionHeads, planes_PN: torch.Tensor, query_inputs: Metric) -> torch.Tensor:
    """Return how much an error of each key plane matters: the root of its queries' energy, `[K, P]`."""
    energy_KSPN = by_kv_head(heads, query_inputs.energies(heads.q_HEX))[:, :, planes_PN]
    if heads.keys == "normed":  # its queries have a norm of their own: all heads' are of one size, however large Wq is
        energy_KSPN = energy_KSPN / energy_KSPN.sum(dim=(2, 3), keepdim=True)
    if heads.q_gain_HE is not None:
        energy_KSPN = energy_KSPN * by_kv_head(heads, heads.q_gain_HE)[:, :, planes_PN].square()
    return energy_KSPN.sum(dim=(1, 3)).sqrt()


def effective_keys(heads: AttentionHeads) -> torch.Tensor:
    """Return the keys with the gains of a norm over all heads, `[K, E, X]`."""
    return heads.k_KEX if heads.k_gain_KE is None else heads.k_KEX * heads.k_gain_KE[..., None]
