"""One shared block of rows for the heads of a group, where each head may multiply it by any matrix.

Value head h reaches the model as `Wo_h Wv_h x`: for any invertible M, (M⁻¹ Wv_h, Wo_h M) computes the same.
So the best shared block is no mean but the mixture of all heads' rows that keeps most of what is read of them
(`leading.py`); each head's rows are then sought in it by least squares. Keys that are not rotated are the same
problem with the queries in the place of Wo.

Legend: R heads of a group, F rows of a head, N = R·F rows of all heads, X inputs.
"""

from dataclasses import dataclass

import torch

from mha2gqa.methods.aligned.leading import firm, leading_mixtures


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
    mixing_FN = leading_mixtures(weight_NN, gram_NN, width)
    mixing_FN = towards(mixing_FN.to(rows_RFX.dtype) @ rows_RFX.flatten(0, 1), rows_RFX) @ mixing_FN
    seen_FN = mixing_FN @ gram_NN.double()
    lift_FN = torch.linalg.solve(firm(seen_FN @ mixing_FN.mT, gram_NN.dtype), seen_FN)
    lift_RFF = lift_FN.mT.unflatten(0, (heads, width))
    return SharedBasis(mixing_FN.to(rows_RFX.dtype), lift_RFF.to(rows_RFX.dtype))


def towards(shared_FX: torch.Tensor, rows_RFX: torch.Tensor) -> torch.Tensor:
    """Return the scaled rotation that brings the shared block nearest to the mean head (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd((rows_RFX.mean(dim=0) @ shared_FX.mT).double())
    wanted = rows_RFX.square().sum(dim=(1, 2)).mean()
    scale = (wanted / shared_FX.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny)).sqrt()
    turn: torch.Tensor = (u @ vh) * torch.where(scale > 0, scale, torch.ones_like(scale))
    return turn
