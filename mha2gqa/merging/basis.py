"""One shared block of rows for the heads of a group, where each head may multiply it by any matrix.

Value head h reaches the model as `Wo_h Wv_h x`: for any invertible M, (M⁻¹ Wv_h, Wo_h M) computes the same.
So the best shared block is no mean. With V the rows of all heads, C the metric of the inputs and W = Tᵀ T that of
what reads the rows, it is the truncated singular value decomposition of T V in C (Eckart and Young 1936), taken from
its Gram matrix; each head's rows are then sought in it by least squares. Keys that are not rotated are the same
problem with the queries in the place of Wo.

Legend: R heads of a group, F rows of a head, N = R·F rows of all heads, X inputs.
"""

from dataclasses import dataclass

import torch

from mha2gqa.merging.leading import leading_eigenvectors

_NEGLIGIBLE = {torch.float64: 1e-12, torch.float32: 1e-7}
"""Share of the mean energy below which a direction counts as not used."""


@dataclass(frozen=True)
class SharedBasis:
    """A shared block as a mixture of the heads' rows, and what each head multiplies it with.

    Head's rows ≈ lift @ mixing @ all heads' rows: `mixing` is `[F, N]`.
    """

    mixing: torch.Tensor
    lift_RFF: torch.Tensor


def share_basis(rows_RFX: torch.Tensor, weight_NN: torch.Tensor, gram_NN: torch.Tensor) -> SharedBasis:
    """Find the shared block of a group.

    The block is turned and scaled to lie as near as it can to the mean of the heads, which changes nothing
    of what is computed and keeps the channels of the cache as even as they were.

    Args:
        rows_RFX: Rows of the heads.
        weight_NN: W: how much errors of the rows matter, alone and together.
        gram_NN: Gram matrix of the rows in the metric of the inputs.
    """
    heads, width = rows_RFX.shape[:2]
    root_NN, gram = _root(weight_NN), gram_NN.double()
    mixing_FN = leading_eigenvectors(root_NN @ gram @ root_NN.mT, width).mT @ root_NN
    mixing_FN = _towards(mixing_FN.to(rows_RFX.dtype) @ rows_RFX.flatten(0, 1), rows_RFX) @ mixing_FN
    seen_FN = mixing_FN @ gram
    lift_FN = torch.linalg.solve(_firm(seen_FN @ mixing_FN.mT, gram_NN.dtype), seen_FN)
    lift_RFF = lift_FN.mT.unflatten(0, (heads, width))
    return SharedBasis(mixing_FN.to(rows_RFX.dtype), lift_RFF.to(rows_RFX.dtype))


def basis_loss(weight_NN: torch.Tensor, gram_NN: torch.Tensor, width: int) -> float:
    """Return what sharing loses of the weighted rows' energy.

    Args:
        weight_NN: W.
        gram_NN: Gram matrix of the rows in the metric of the inputs.
        width: F.
    """
    root_NN = _root(weight_NN)
    energies_N = torch.linalg.eigvalsh(root_NN @ gram_NN.double() @ root_NN.mT)
    return float(energies_N[:-width].clamp(min=0).sum())


def _root(weight_NN: torch.Tensor) -> torch.Tensor:
    """Return T with Tᵀ T = W, fp64."""
    lower: torch.Tensor = torch.linalg.cholesky(_firm(weight_NN.double(), weight_NN.dtype))
    return lower.mT


def _firm(moment: torch.Tensor, known_to: torch.dtype) -> torch.Tensor:
    """Return a moment with a little energy in every direction."""
    size = (moment.diagonal().mean() * _NEGLIGIBLE[known_to]).clamp(min=torch.finfo(moment.dtype).tiny ** 0.5)
    return moment + size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def _towards(shared_FX: torch.Tensor, rows_RFX: torch.Tensor) -> torch.Tensor:
    """Return the scaled rotation that brings the shared block nearest to the mean head (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd((rows_RFX.mean(dim=0) @ shared_FX.mT).double())
    wanted = rows_RFX.square().sum(dim=(1, 2)).mean()
    scale = (wanted / shared_FX.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny)).sqrt()
    turn: torch.Tensor = (u @ vh) * torch.where(scale > 0, scale, torch.ones_like(scale))
    return turn
