"""Merges keys that no norm holds; the queries take up what each head is multiplied with.

Rotary embedding turns each plane by an angle that depends on position alone, so a plane, read as one complex
row, may be multiplied by any complex number c when its queries are multiplied by 1/c̄. Rows that are not rotated
are merged as values are, with the queries in the place of the outputs. Where the speeds of the planes are known,
the result is then improved over all planes at once (`distances.py`).

All of it follows from two kinds of small matrices, one Gram matrix of the rows of all heads and the second moments
of the queries that meet them, so a merge is also known by what it loses before it is made (`loss.py`).

Legend: as in `heads.py`, with R KV heads of a group for K, S query heads of a KV head.
"""

from dataclasses import replace

import torch

from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.metric import Metric
from mha2gqa.methods.aligned.basis import share_basis
from mha2gqa.methods.aligned.distances import SharedKeys, fit_over_distances, pairs
from mha2gqa.methods.aligned.planes import complex_grams, leading_vectors, tiny


def merge_free_keys(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    """Return a group with one key head, and its queries changed with it.

    Args:
        heads: The heads of a group.
        known: Of the inputs.
    """
    keys_REX, rows = heads.k_KEX, heads.k_KEX.flatten(0, 1)
    gram, energy_REE = known.inputs.gram(rows), query_energies(heads, known.query_inputs)
    keys = share_plane_by_plane(keys_REX, gram, energy_REE, heads.rotary)
    if heads.rotary.frequencies and len(keys_REX) > 1:
        keys, _ = fit_over_distances(keys, gram, energy_REE, heads.rotary)
    shared_EX = keys.mixing @ rows
    scale_E1 = _scale(shared_EX, keys_REX, heads.rotary)[:, None]
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
        weight_RP = energy_REE.diagonal(dim1=1, dim2=2)[:, planes_P2].sum(dim=-1).sqrt()
        vector_RP = leading_vectors(complex_grams(gram, planes_P2, weight_RP))
        _as_matrices(mixing_ERE.transpose(0, 1), planes_P2, vector_RP.conj() * weight_RP)
        _as_matrices(lift_REE, planes_P2, (vector_RP / weight_RP.clamp(min=tiny(weight_RP))).conj())
    if len(rest_U):
        rows = rows_of_heads(torch.arange(heads), width).view(heads, width)[:, rest_U].flatten()
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
    """Write what multiplies complex rows as what multiplies their two real ones."""
    first, second = planes_P2.T
    into_REE[:, first, first] = into_REE[:, second, second] = factor_RP.real
    into_REE[:, first, second], into_REE[:, second, first] = -factor_RP.imag, factor_RP.imag


def _scale(shared_EX: torch.Tensor, keys_REX: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Return what gives each pair of rows the heads' length, `[E]`: 16-bit weights and caches keep their range."""
    pairs_P2 = pairs(rotary, len(shared_EX))
    wanted_P, now_P = (one.square().sum(dim=-1)[..., pairs_P2].sum(dim=-1).sqrt() for one in (keys_REX, shared_EX))
    scale_P = wanted_P.square().mean(dim=0).sqrt() / now_P
    scale_E = torch.ones_like(shared_EX[:, 0])
    scale_E[pairs_P2] = torch.where(scale_P.isfinite() & (scale_P > 0), scale_P, torch.ones_like(scale_P))[:, None]
    return scale_E
