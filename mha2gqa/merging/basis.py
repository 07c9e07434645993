"""One shared block of rows for the heads of a group, where each head may multiply it by any matrix.

Value head h reaches the model as `Wo_h Wv_h x`: for any invertible M, (M⁻¹ Wv_h, Wo_h M) computes the same.
So the best shared block is no mean. With Wo_h = Q_h T_h (Q_h orthonormal) it is the truncated singular value
decomposition of the stacked `T_h Wv_h` in the metric of the inputs (Eckart and Young 1936), taken from its
Gram matrix. Keys that are not rotated are the same problem with the queries in the place of Wo.

Legend: R heads of a group, F rows of a head, X inputs.
"""

from dataclasses import dataclass

import torch

from mha2gqa.metric import Metric

_NEGLIGIBLE = {torch.float64: 1e-12, torch.float32: 1e-7}
"""Share of a counterpart's largest energy below which a direction counts as not used."""


@dataclass(frozen=True)
class SharedBasis:
    """A shared block, and what each head multiplies it with: head's rows ≈ lift @ shared."""

    shared_FX: torch.Tensor
    lift_RFF: torch.Tensor


def weights(energy_RFF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T_h, with which a head's rows are what their counterpart sees of them, and its inverse.

    Args:
        energy_RFF: T_hᵀ T_h: the Gram matrix of the output columns (or of the queries) that read the rows.
    """
    values, vectors = torch.linalg.eigh(energy_RFF.double())
    floor = values.amax(dim=-1, keepdim=True) * _NEGLIGIBLE[energy_RFF.dtype]
    root = values.clamp(min=0).maximum(floor).clamp(min=torch.finfo(values.dtype).tiny ** 0.5).sqrt()
    return root[..., None] * vectors.mT, vectors / root[..., None, :]


def weighted_gram(rows_RFX: torch.Tensor, weight_RFF: torch.Tensor, inputs: Metric) -> torch.Tensor:
    """Return the Gram matrix of all heads' weighted rows `T_h rows_h`, fp64 `[R·F, R·F]`.

    Args:
        rows_RFX: Rows of the heads.
        weight_RFF: T_h, see `weights`.
        inputs: Metric of the inputs.
    """
    gram = inputs.gram(rows_RFX.flatten(0, 1)).double()
    for _ in range(2):  # from the left, and by symmetry from the right
        gram = (weight_RFF @ gram.unflatten(0, weight_RFF.shape[:2])).flatten(0, 1).mT
    return gram


def share_basis(rows_RFX: torch.Tensor, energy_RFF: torch.Tensor, inputs: Metric) -> SharedBasis:
    """Find the shared block of a group.

    The block is turned and scaled to lie as near as it can to the mean of the heads, which changes nothing
    of what is computed and keeps the channels of the cache as even as they were.

    Args:
        rows_RFX: Rows of the heads.
        energy_RFF: What reads them, see `weights`.
        inputs: Metric of the inputs.
    """
    heads, width = rows_RFX.shape[:2]
    weight_RFF, inverse_RFF = weights(energy_RFF)
    gram = weighted_gram(rows_RFX, weight_RFF, inputs)
    leading_RFF = torch.linalg.eigh(gram).eigenvectors[:, -width:].unflatten(0, (heads, width))
    mixing = (leading_RFF.mT @ weight_RFF).transpose(0, 1).flatten(1)
    shared_FX = mixing.to(rows_RFX.dtype) @ rows_RFX.flatten(0, 1)
    turn_FF = _towards(shared_FX, rows_RFX)
    lift_RFF = inverse_RFF @ leading_RFF @ torch.linalg.inv(turn_FF)
    return SharedBasis(turn_FF.to(rows_RFX.dtype) @ shared_FX, lift_RFF.to(rows_RFX.dtype))


def basis_loss(gram: torch.Tensor, width: int) -> torch.Tensor:
    """Return what sharing loses of the weighted rows' energy, a number.

    Args:
        gram: `weighted_gram` of one group.
        width: F.
    """
    lost: torch.Tensor = torch.linalg.eigvalsh(gram)[..., :-width].clamp(min=0).sum()
    return lost


def _towards(shared_FX: torch.Tensor, rows_RFX: torch.Tensor) -> torch.Tensor:
    """Return the scaled rotation that brings the shared block nearest to the mean head (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd((rows_RFX.mean(dim=0) @ shared_FX.mT).double())
    wanted = rows_RFX.square().sum(dim=(1, 2)).mean()
    scale = (wanted / shared_FX.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny)).sqrt()
    turn: torch.Tensor = (u @ vh) * torch.where(scale > 0, scale, torch.ones_like(scale))
    return turn
