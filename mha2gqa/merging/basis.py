"""One shared block of rows for the heads of a group, where each head may multiply it by any matrix.

Value head h reaches the model as `Wo_h Wv_h x`: for any invertible M, (M⁻¹ Wv_h, Wo_h M) computes the same.
So the best shared block is no mean. With Wo_h = Q_h T_h (Q_h orthonormal) it is the truncated singular value
decomposition of the stacked `T_h Wv_h` in the metric of the inputs (Eckart and Young 1936), taken from its
Gram matrix. Keys that are not rotated are the same problem with the queries in the place of Wo.

Legend: G groups, R heads of a group, F rows of a head, X inputs.
"""

from dataclasses import dataclass

import torch

_NEGLIGIBLE = {torch.float64: 1e-12, torch.float32: 1e-7}
"""Share of a counterpart's largest energy below which a direction counts as not used."""


@dataclass(frozen=True)
class SharedBasis:
    """A shared block, and what each head multiplies it with: head's rows ≈ lift @ shared."""

    shared_GFX: torch.Tensor
    lift_GRFF: torch.Tensor


def weighted_rows(rows_GRFX: torch.Tensor, energy_GRFF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows as their counterpart sees them, `T_h rows_h`, and the inverse of each T_h.

    Args:
        rows_GRFX: Rows of the heads.
        energy_GRFF: T_hᵀ T_h: the Gram matrix of the output columns (or of the queries) that read them.
    """
    values, vectors = torch.linalg.eigh(energy_GRFF.double())
    floor = values.amax(dim=-1, keepdim=True) * _NEGLIGIBLE[rows_GRFX.dtype]
    root = values.clamp(min=0).maximum(floor).clamp(min=torch.finfo(values.dtype).tiny ** 0.5).sqrt()
    weigh, inverse = root[..., None] * vectors.mT, vectors / root[..., None, :]
    return weigh.to(rows_GRFX.dtype) @ rows_GRFX, inverse


def share_basis(rows_GRFX: torch.Tensor, energy_GRFF: torch.Tensor, moment_XX: torch.Tensor | None) -> SharedBasis:
    """Find the shared block of each group.

    The block is turned and scaled to lie as near as it can to the mean of the heads, which changes nothing
    of what is computed and keeps the channels of the cache as even as they were.

    Args:
        rows_GRFX: Rows of the heads.
        energy_GRFF: What reads them, see `weighted_rows`.
        moment_XX: Second moment of the inputs; None is the identity.
    """
    heads, width = rows_GRFX.shape[1:3]
    seen, inverse_GRFF = weighted_rows(rows_GRFX, energy_GRFF)
    stack = seen.flatten(1, 2)
    measured = stack if moment_XX is None else stack @ moment_XX.to(stack.dtype)
    gram = (measured @ stack.mT).double()
    leading = torch.linalg.eigh(gram).eigenvectors[..., -width:]
    shared_GFX = leading.mT.to(stack.dtype) @ stack
    lift_GRFF = inverse_GRFF @ leading.unflatten(1, (heads, width))
    turn_GFF = _towards(shared_GFX, rows_GRFX)
    lift_GRFF = lift_GRFF @ torch.linalg.inv(turn_GFF)[:, None]
    return SharedBasis(turn_GFF.to(stack.dtype) @ shared_GFX, lift_GRFF.to(stack.dtype))


def basis_loss(gram: torch.Tensor, width: int) -> torch.Tensor:
    """Return what sharing loses of the weighted rows' energy, a number.

    Args:
        gram: Gram matrix of one group's stacked `weighted_rows`, `[R·F, R·F]`.
        width: F.
    """
    lost: torch.Tensor = torch.linalg.eigvalsh(gram)[..., :-width].clamp(min=0).sum()
    return lost


def _towards(shared_GFX: torch.Tensor, rows_GRFX: torch.Tensor) -> torch.Tensor:
    """Return the scaled rotation that brings the shared block nearest to the mean head (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd((rows_GRFX.mean(dim=1) @ shared_GFX.mT).double())
    wanted = rows_GRFX.square().sum(dim=(2, 3)).mean(dim=1)
    scale = (wanted / shared_GFX.square().sum(dim=(1, 2)).clamp(min=torch.finfo(wanted.dtype).tiny)).sqrt()
    turn: torch.Tensor = (u @ vh) * torch.where(scale > 0, scale, torch.ones_like(scale))[:, None, None]
    return turn
