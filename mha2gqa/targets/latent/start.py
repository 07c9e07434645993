"""Where a fit of latent attention begins: the leading shared rows of the chosen planes, then one latent for the rest.

Rotary rows are taken plane by plane. What they leave of the keys, as far as a row that does not turn can catch it, and
the values are then one problem: the mixtures of all these rows that keep most of what is read of them
(`methods/aligned/basis.py`).

Everything is a mixture of the M rows of a layer: of all KV heads' keys, then of all their values.

Legend: as in `fit.py`.
"""

import torch

from mha2gqa.heads.attention import Rotary
from mha2gqa.methods.aligned.basis import leading_mixtures
from mha2gqa.methods.aligned.planes import tiny
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.planes import SharedRows, shared_rows, standing


def start_mixing(
    gram_MM: torch.Tensor,
    costs_KEE: torch.Tensor,
    value_costs: torch.Tensor,
    rotary: Rotary,
    key: RotaryKey,
    latent: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mixtures of a layer's rows to begin with: of the rotary key `[R, M]`, by half, and of the latent `[C, M]`.

    Args:
        gram_MM: Gram matrix of the rows in the metric of the inputs, fp64.
        costs_KEE: What errors of the rows of keys cost.
        value_costs: What errors of the rows of values cost, `[K·F, K·F]`.
        rotary: Of the source.
        key: The shared rotary key.
        latent: C.
    """
    heads, width = costs_KEE.shape[:2]
    keys = heads * width
    costs = torch.block_diag(torch.zeros_like(gram_MM[:keys, :keys]), value_costs)
    turning_RM = gram_MM.new_zeros(key.width, len(gram_MM))
    if not rotary.width:
        costs[:keys, :keys] = torch.block_diag(*costs_KEE)
    else:
        shared = shared_rows(gram_MM[:keys, :keys], costs_KEE, rotary)
        begins = [(plane, rank % heads) for plane, rank in key.begins]
        turning_RM[:, :keys] = _rotary_rows(shared, begins, rotary, width).flatten(1)
        costs[:keys, :keys] = _costs_of_rest(shared, begins, costs_KEE, rotary)
    return turning_RM, _latent_rows(costs, gram_MM, latent)


def _rotary_rows(shared: SharedRows, begins: list[tuple[int, int]], rotary: Rotary, width: int) -> torch.Tensor:
    """Return the rotary rows as mixtures of the keys' rows, `[R, K, E]`."""
    planes, ranks = (torch.tensor(numbers) for numbers in zip(*begins, strict=True))
    factor_RK = shared.vector_PNK[planes, ranks].conj() * shared.weight_PK[planes]
    first, second = rotary.planes()[planes].T
    count, heads = factor_RK.shape
    mixing = factor_RK.real.new_zeros(2, count, heads, width)
    rows = torch.arange(count)
    # (a + ib)(k + il) = (ak - bl) + i(bk + al)
    mixing[0, rows, :, first], mixing[0, rows, :, second] = factor_RK.real, -factor_RK.imag
    mixing[1, rows, :, first], mixing[1, rows, :, second] = factor_RK.imag, factor_RK.real
    return mixing.flatten(0, 1)


def _costs_of_rest(
    shared: SharedRows, begins: list[tuple[int, int]], costs_KEE: torch.Tensor, rotary: Rotary
) -> torch.Tensor:
    """Return what errors of the keys' rows cost where the rotary rows are taken off them, `[K·E, K·E]`.

    In units of their weights the rows of a plane lose their part along the chosen vectors V: I - V Vᴴ is left. A row
    that stands still catches κ of what is left, so errors of it count κ² as much.
    """
    heads, width = costs_KEE.shape[:2]
    chosen = shared.vector_PNK.new_zeros(shared.vector_PNK.shape[:2])
    for plane, rank in begins:
        chosen[plane, rank] = 1
    kept_PKK = shared.vector_PNK.mT @ (chosen[..., None] * shared.vector_PNK.conj())
    left_PKK = torch.eye(heads, dtype=kept_PKK.dtype, device=kept_PKK.device) - kept_PKK
    weight_PK = shared.weight_PK.clamp(min=tiny(shared.weight_PK))
    factor_PKK = left_PKK * weight_PK[:, None] / weight_PK[..., None] * standing(rotary).to(weight_PK)[:, None, None]
    first, second = rotary.planes().T
    rest_KEKE = torch.zeros(heads, width, heads, width, dtype=weight_PK.dtype, device=weight_PK.device)
    still = rotary.rest(width).flatten()
    for head in range(heads):
        rest_KEKE[head, still, head, still] = 1
    rest_KEKE[:, first, :, first] = rest_KEKE[:, second, :, second] = factor_PKK.real
    rest_KEKE[:, first, :, second], rest_KEKE[:, second, :, first] = -factor_PKK.imag, factor_PKK.imag
    rest = rest_KEKE.flatten(2).flatten(0, 1)
    read = torch.einsum("kef,kfm->kem", costs_KEE.to(rest), rest.unflatten(0, (heads, width))).flatten(0, 1)
    return rest.mT @ read


def _latent_rows(costs: torch.Tensor, gram_MM: torch.Tensor, count: int) -> torch.Tensor:
    """Return the leading mixtures, `[C, M]`; rows of zeros where there are not so many."""
    most = min(count, len(gram_MM))
    found = leading_mixtures(costs, gram_MM, most)
    return torch.cat([found, found.new_zeros(count - most, found.shape[1])])
