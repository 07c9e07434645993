"""One shared row per plane for the heads of a group, where each head may multiply the plane by one number.

Serves rotary planes (two rows that turn together, one complex row) and channels (one real row) alike. A
group's rows a_h are to be c_h s with one s for all: the best s and c are the leading eigenvector of the
group's Gram matrix (Eckart and Young 1936), in the metric of the layer's inputs. Which c are allowed is
the layer's freedom.

Legend: G groups, R heads of a group, P planes, N rows of a plane, X inputs.
"""

import math
from dataclasses import dataclass

import torch

from mha2gqa.heads import Freedom

_NOTABLE = 0.2
"""Share of the energy that signs must keep beyond what plain averaging keeps; less is the chance of unrelated heads."""


@dataclass(frozen=True)
class SharedPlanes:
    """Shared rows, and what each head multiplies them with: head's rows ≈ factor · shared."""

    shared_GPNX: torch.Tensor
    factor_GRP: torch.Tensor
    """Complex where the rows are."""


def plane_grams(rows_GRPNX: torch.Tensor, moment_XX: torch.Tensor | None) -> torch.Tensor:
    """Return the Gram matrix of the heads, plane by plane, `[G, P, R, R]` (Hermitian).

    Args:
        rows_GRPNX: Rows of the heads, real or complex.
        moment_XX: Second moment of the inputs, the metric; None is the identity.
    """
    measured = rows_GRPNX if moment_XX is None else rows_GRPNX @ moment_XX.to(rows_GRPNX.dtype)
    flat, other = (rows.transpose(1, 2).flatten(3) for rows in (measured, rows_GRPNX))
    return flat @ other.mH


def share_planes(
    rows_GRPNX: torch.Tensor, weight_GRP: torch.Tensor, moment_XX: torch.Tensor | None, freedom: Freedom
) -> SharedPlanes:
    """Find the shared rows of each plane.

    Args:
        rows_GRPNX: Rows of the heads; complex with N = 1 for `free`.
        weight_GRP: How much an error of a head's plane matters, as a factor of its length.
        moment_XX: Second moment of the inputs; None is the identity.
        freedom: Which factors are allowed.
    """
    if freedom == "fixed":
        shared_GPNX = rows_GRPNX.mean(dim=1)
        return SharedPlanes(shared_GPNX, torch.ones_like(weight_GRP))
    length_GR11 = _lengths(rows_GRPNX, moment_XX) if freedom == "normed" else None
    if length_GR11 is not None:
        rows_GRPNX = rows_GRPNX / length_GR11[..., None, None]
    weighted = rows_GRPNX * weight_GRP[..., None, None]
    gram_GPRR = plane_grams(weighted, moment_XX)
    if freedom in ("free", "scaled"):
        vector_GRP = _leading(gram_GPRR)
        shared = (vector_GRP.conj()[..., None, None] * weighted).sum(dim=1)
        return _balanced(shared, vector_GRP / weight_GRP.clamp(min=_tiny(weight_GRP)), rows_GRPNX)
    sign_GRP = _signs(gram_GPRR).transpose(1, 2)
    square = weight_GRP.square()[..., None, None]
    shared = (square * sign_GRP[..., None, None] * rows_GRPNX).sum(dim=1)
    shared = shared / square.sum(dim=1).clamp(min=_tiny(weight_GRP))
    if length_GR11 is not None:
        shared = shared * length_GR11.mean(dim=1)[..., None, None]
    return SharedPlanes(shared, sign_GRP)


def plane_loss(gram_PRR: torch.Tensor, freedom: Freedom) -> torch.Tensor:
    """Return what sharing loses of the weighted rows' energy, a number.

    Args:
        gram_PRR: `plane_grams` of one group's weighted rows.
        freedom: Which factors are allowed.
    """
    heads = gram_PRR.shape[-1]
    total: torch.Tensor = gram_PRR.diagonal(dim1=-2, dim2=-1).real.sum()
    if freedom == "fixed":
        kept: torch.Tensor = gram_PRR.real.sum() / heads
        return total - kept
    if freedom in ("free", "scaled"):
        kept = torch.linalg.eigvalsh(gram_PRR)[..., -1].sum()
        return total - kept
    return total - _kept(gram_PRR, _signs(gram_PRR)).sum() / heads


def _signs(gram_XRR: torch.Tensor) -> torch.Tensor:
    """Return a sign for each head, `[..., R]`: those of the leading eigenvector, where they keep notably more."""
    vector_XR = _leading(gram_XRR[None] if gram_XRR.dim() == 3 else gram_XRR).transpose(1, 2)
    sign_XR = torch.where(vector_XR.reshape(gram_XRR.shape[:-1]) < 0, -1.0, 1.0).to(gram_XRR.dtype)
    energy = gram_XRR.diagonal(dim1=-2, dim2=-1).sum(dim=-1) * gram_XRR.shape[-1]
    gain = _kept(gram_XRR, sign_XR) - _kept(gram_XRR, torch.ones_like(sign_XR))
    return torch.where((gain > _NOTABLE * energy)[..., None], sign_XR, torch.ones_like(sign_XR))


def _kept(gram_XRR: torch.Tensor, sign_XR: torch.Tensor) -> torch.Tensor:
    kept: torch.Tensor = torch.einsum("...r,...rs,...s->...", sign_XR, gram_XRR, sign_XR)
    return kept


def _leading(gram_GPRR: torch.Tensor) -> torch.Tensor:
    """Return the leading eigenvectors `[G, R, P]`, turned so that the heads' sum is real and positive."""
    wide = torch.complex128 if gram_GPRR.is_complex() else torch.float64
    vector_GPR = torch.linalg.eigh(gram_GPRR.to(wide)).eigenvectors[..., -1].to(gram_GPRR.dtype)
    total_GP = vector_GPR.sum(dim=-1, keepdim=True)
    size = total_GP.abs()
    phase = torch.where(size > 0, total_GP / size.clamp(min=_tiny(size)), torch.ones_like(total_GP))
    turned: torch.Tensor = (vector_GPR * phase.conj()).transpose(1, 2)
    return turned


def _balanced(shared: torch.Tensor, factor_GRP: torch.Tensor, rows_GRPNX: torch.Tensor) -> SharedPlanes:
    """Give the shared rows the length that the heads' rows have, so that 16-bit weights and caches keep their range."""
    wanted_GP = rows_GRPNX.abs().square().sum(dim=(3, 4)).mean(dim=1).sqrt()
    scale_GP = wanted_GP / shared.abs().square().sum(dim=(2, 3)).sqrt().clamp(min=_tiny(wanted_GP))
    scale_GP = torch.where(scale_GP > 0, scale_GP, torch.ones_like(scale_GP))
    return SharedPlanes(shared * scale_GP[..., None, None], factor_GRP / scale_GP[:, None])


def _lengths(rows_GRPNX: torch.Tensor, moment_XX: torch.Tensor | None) -> torch.Tensor:
    """Return the root of the mean square of each head's outputs, `[G, R, 1]`."""
    measured = rows_GRPNX if moment_XX is None else rows_GRPNX @ moment_XX.to(rows_GRPNX.dtype)
    energy_GR = (measured * rows_GRPNX).sum(dim=(2, 3, 4))
    return energy_GR.clamp(min=_tiny(energy_GR)).sqrt()[..., None]


def _tiny(like: torch.Tensor) -> float:
    return math.sqrt(torch.finfo(like.dtype).tiny)
