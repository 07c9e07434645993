"""One shared row per plane for the heads of a group, where each head may multiply the plane by one number.

Serves rotary planes (two rows that turn together) and channels (one row) alike. A group's rows a_h are to be
c_h s with one s for all: the best s and c are the leading eigenvector of the group's Gram matrix (Eckart and
Young 1936), in the metric of the layer's inputs. Which c are allowed is the layer's freedom; for `free`, whose
planes are one complex row (`keys.py`), complex numbers.

Legend: R heads of a group, P planes, N rows of a plane, X inputs.
"""

import math
from dataclasses import dataclass

import torch

from mha2gqa.heads.freedom import Freedom
from mha2gqa.heads.metric import Metric

_NOTABLE = 0.2
"""Share of the energy that signs must keep beyond what plain averaging keeps; less is the chance of unrelated heads."""


@dataclass(frozen=True)
class SharedPlanes:
    """Shared rows, and what each head multiplies them with: head's rows ≈ factor · shared."""

    shared_PNX: torch.Tensor
    factor_RP: torch.Tensor


def plane_grams(rows_RPNX: torch.Tensor, weight_RP: torch.Tensor, inputs: Metric) -> torch.Tensor:
    """Return the Gram matrix of the heads' weighted rows, plane by plane, `[P, R, R]`.

    Args:
        rows_RPNX: Rows of the heads.
        weight_RP: What each head's plane is multiplied with.
        inputs: Metric of the inputs.
    """
    heads, _, rows, _ = rows_RPNX.shape
    gram = inputs.gram(rows_RPNX.transpose(0, 1).flatten(1, 2))
    # A factor is the same for all rows of a plane, so their products add up: the trace over N of each pair's block.
    gram_PRNRN = gram.unflatten(2, (heads, rows)).unflatten(1, (heads, rows))
    return _weighted(gram_PRNRN.diagonal(dim1=2, dim2=4).sum(dim=-1), weight_RP)


def complex_grams(gram: torch.Tensor, planes_P2: torch.Tensor, weight_RP: torch.Tensor) -> torch.Tensor:
    """Return the same of planes that are one complex row, out of the Gram matrix of all rows, complex `[P, R, R]`.

    Args:
        gram: Of all rows of all heads, `[R·E, R·E]`.
        planes_P2: The two rows of each plane.
        weight_RP: What each head's plane is multiplied with.
    """
    gram_RERE = gram.unflatten(0, (len(weight_RP), -1)).unflatten(2, (len(weight_RP), -1))

    def block(one_P: torch.Tensor, other_P: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = gram_RERE[:, one_P, :, other_P]  # indices apart from each other: planes come first
        return rows

    first, second = planes_P2.T
    # z = a + ib gives z_r z̄_s = (a_r a_s + b_r b_s) + i(b_r a_s - a_r b_s).
    gram_PRR = torch.complex(block(first, first) + block(second, second), block(second, first) - block(first, second))
    return _weighted(gram_PRR, weight_RP)


def _weighted(gram_PRR: torch.Tensor, weight_RP: torch.Tensor) -> torch.Tensor:
    weighted: torch.Tensor = gram_PRR * weight_RP.T[:, :, None] * weight_RP.T[:, None]
    return weighted


def share_planes(rows_RPNX: torch.Tensor, weight_RP: torch.Tensor, inputs: Metric, freedom: Freedom) -> SharedPlanes:
    """Find the shared rows of each plane, where factors are real.

    Args:
        rows_RPNX: Rows of the heads.
        weight_RP: How much an error of a head's plane matters, as a factor of its length.
        inputs: Metric of the inputs.
        freedom: Which factors are allowed; those of `free` are not real.
    """
    if freedom == "fixed":  # nothing can be made up for: the plain mean, as `mean` gives it
        return SharedPlanes(rows_RPNX.mean(dim=0), torch.ones_like(weight_RP))
    if freedom == "scaled":
        # Of weighted rows w a, the best one is s = Σ u w a, and w a ≈ u s: a head's rows are u/w times s.
        vector_RP = leading_vectors(plane_grams(rows_RPNX, weight_RP, inputs))
        shared = _combined(vector_RP * weight_RP, rows_RPNX)
        return _balanced(shared, vector_RP / weight_RP.clamp(min=tiny(weight_RP)), rows_RPNX)
    # Behind a norm of each head (`normed`) only directions count: heads are averaged at one length, and the mean length
    # put back for the range of 16 bits. For given signs f, Σ w²|a - f s|² is least at s = Σ w²f a / Σ w².
    length_R = _lengths(rows_RPNX, inputs) if freedom == "normed" else weight_RP.new_ones(len(weight_RP))
    sign_RP = _signs(plane_grams(rows_RPNX, weight_RP / length_R[:, None], inputs)).T
    square = weight_RP.square()
    shared = _combined(square * sign_RP / length_R[:, None], rows_RPNX)
    shared = shared * (length_R.mean() / square.sum(dim=0).clamp(min=tiny(square)))[:, None, None]
    return SharedPlanes(shared, sign_RP)


def plane_loss(gram_PRR: torch.Tensor, freedom: Freedom) -> torch.Tensor:
    """Return what sharing loses of the weighted rows' energy, a number.

    Args:
        gram_PRR: `plane_grams` of one group.
        freedom: Which factors are allowed; those of `free` are not real.
    """
    heads = gram_PRR.shape[-1]
    total: torch.Tensor = gram_PRR.diagonal(dim1=-2, dim2=-1).sum()
    # A mean of R rows keeps |Σ a|² / R of their energy, with signs |Σ f a|² / R, with any factors an eigenvalue.
    if freedom == "fixed":
        kept: torch.Tensor = gram_PRR.sum() / heads
        return total - kept
    if freedom == "scaled":
        kept = torch.linalg.eigvalsh(gram_PRR)[..., -1].sum()
        return total - kept
    return total - _kept(gram_PRR, _signs(gram_PRR)).sum() / heads


def _combined(factor_RP: torch.Tensor, rows_RPNX: torch.Tensor) -> torch.Tensor:
    """Return Σ_h factor_h · rows_h, `[P, N, X]`."""
    rows = rows_RPNX.transpose(0, 1)
    return (factor_RP.T[:, None] @ rows.flatten(2)).view(rows[:, 0].shape)


def _signs(gram_PRR: torch.Tensor) -> torch.Tensor:
    """Return a sign for each head, `[P, R]`: those of the leading eigenvector, where they keep notably more."""
    vector_PR = leading_vectors(gram_PRR).T
    sign_PR = torch.where(vector_PR < 0, -1.0, 1.0).to(gram_PRR.dtype)
    # No signs can keep more than R times the trace: the scale for what is notable.
    energy = gram_PRR.diagonal(dim1=-2, dim2=-1).sum(dim=-1) * gram_PRR.shape[-1]
    gain = _kept(gram_PRR, sign_PR) - _kept(gram_PRR, torch.ones_like(sign_PR))
    return torch.where((gain > _NOTABLE * energy)[:, None], sign_PR, torch.ones_like(sign_PR))


def _kept(gram_PRR: torch.Tensor, sign_PR: torch.Tensor) -> torch.Tensor:
    kept: torch.Tensor = torch.einsum("pr,prs,ps->p", sign_PR, gram_PRR, sign_PR)
    return kept


def leading_vectors(gram_PRR: torch.Tensor) -> torch.Tensor:
    """Return the leading eigenvector of each Gram matrix, `[R, P]`, turned so that its sum is real and positive.

    Args:
        gram_PRR: `plane_grams` or `complex_grams`.
    """
    # fp64: Gram matrices square lengths, so of a head a thousandth as long as another fp32 would have one digit left.
    wide = torch.complex128 if gram_PRR.is_complex() else torch.float64
    vector_PR = torch.linalg.eigh(gram_PRR.to(wide)).eigenvectors[..., -1].to(gram_PRR.dtype)
    # An eigenvector has no phase of its own, and libraries choose different ones. This one makes the shared rows lie on
    # the side of the mean, so that planes where heads agree stay as they were.
    total_P1 = vector_PR.sum(dim=-1, keepdim=True)
    size = total_P1.abs()
    phase = torch.where(size > 0, total_P1 / size.clamp(min=tiny(size)), torch.ones_like(total_P1))
    turned: torch.Tensor = (vector_PR * phase.conj()).T
    return turned


def _balanced(shared_PNX: torch.Tensor, factor_RP: torch.Tensor, rows_RPNX: torch.Tensor) -> SharedPlanes:
    """Give the shared rows the length that the heads' rows have, so that 16-bit weights and caches keep their range."""
    wanted_P = rows_RPNX.square().sum(dim=(2, 3)).mean(dim=0).sqrt()
    scale_P = wanted_P / shared_PNX.square().sum(dim=(1, 2)).sqrt().clamp(min=tiny(wanted_P))
    scale_P = torch.where(scale_P > 0, scale_P, torch.ones_like(scale_P))  # a plane of zeros stays one
    return SharedPlanes(shared_PNX * scale_P[:, None, None], factor_RP / scale_P)


def _lengths(rows_RPNX: torch.Tensor, inputs: Metric) -> torch.Tensor:
    """Return the root of the mean square of each head's outputs, `[R]`."""
    energy_R = inputs.energies(rows_RPNX).sum(dim=(1, 2))
    return energy_R.clamp(min=tiny(energy_R)).sqrt()


def tiny(like: torch.Tensor) -> float:
    """Return a number to divide by where there is nothing, whose square is not zero."""
    return math.sqrt(torch.finfo(like.dtype).tiny)
