"""One shared block of rows for the heads of a group, where each head may multiply it by any matrix.

Value head h reaches the model as `Wo_h Wv_h x`: for any invertible M, (M⁻¹ Wv_h, Wo_h M) computes the same.
So the best shared block is no mean but the mixture of all heads' rows that keeps most of what is read of them; each
head's rows are then sought in it by least squares. Keys that are not rotated are the same problem with the queries in
the place of Wo.

With V the N rows of all heads, G = V M Vᵀ their Gram matrix in the metric M of the inputs, and W = Tᵀ T how much errors
of them matter, the best mixtures are the leading eigenvectors of T G Tᵀ, times T (Eckart and Young 1936): they are what
the truncated SVD of T V M^½ keeps. A few rows are decomposed as a whole. Of many, only the wanted directions are
sought, by subspace iteration (Halko, Martinsson and Tropp 2011, section 4.5), with two products a round and without T;
that is exact where no more directions are used than are wanted, and where energies fall slowly it stops at directions
that keep nearly as much, which is all that a merge asks of them. (torch.lobpcg wants a positive definite G, and rows
that are copies of a few have none.)

Legend: R heads of a group, F rows of a head and wanted mixtures, N = R·F rows of all heads, X inputs, S columns of a
subspace.
"""

from dataclasses import dataclass

import torch

_MANY = 8
"""From this many times the wanted mixtures on, they are sought by iteration."""
_MORE = 2
"""The iteration's subspace, in multiples of the wanted mixtures."""
_ENOUGH = 1e-3
"""It ends when a round gains less than this share of what is still lost."""
_ROUNDS = 20
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
    mixing_FN = leading_mixtures(weight_NN, gram_NN, width)
    # Only the span of the mixtures matters from here on. As they come, their energies fall from the largest to what is
    # hardly read, and channels that uneven are what a cache of few bits keeps worst.
    mixing_FN = towards(mixing_FN.to(rows_RFX.dtype) @ rows_RFX.flatten(0, 1), rows_RFX) @ mixing_FN
    # V ≈ L P V by least squares in the inputs' metric: L = G Pᵀ (P G Pᵀ)⁻¹. Setting the derivative of tr(W error) to
    # zero has W as a factor on the left of all of it, so the best lift does not depend on W.
    seen_FN = mixing_FN @ gram_NN.double()
    lift_FN = torch.linalg.solve(firm(seen_FN @ mixing_FN.mT, gram_NN.dtype), seen_FN)
    lift_RFF = lift_FN.mT.unflatten(0, (heads, width))
    return SharedBasis(mixing_FN.to(rows_RFX.dtype), lift_RFF.to(rows_RFX.dtype))


def towards(shared_FX: torch.Tensor, rows_RFX: torch.Tensor) -> torch.Tensor:
    """Return the scaled rotation that brings the shared block nearest to the mean head (orthogonal Procrustes)."""
    # max over rotations Q of tr(Qᵀ mean sharedᵀ) is at Q = U Vᴴ of the SVD of that product (Schönemann 1966).
    u, _, vh = torch.linalg.svd((rows_RFX.mean(dim=0) @ shared_FX.mT).double())
    # The length is that of a head, not of the mean, which is shorter the less the heads have in common.
    wanted = rows_RFX.square().sum(dim=(1, 2)).mean()
    scale = (wanted / shared_FX.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny)).sqrt()
    # A group of zeros has no length to give: scaled by 0, its mixtures could not be divided out again.
    turn: torch.Tensor = (u @ vh) * torch.where(scale > 0, scale, torch.ones_like(scale))
    return turn


def leading_mixtures(weight_NN: torch.Tensor, gram_NN: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mixtures of rows that keep most of what is read of them, fp64 `[F, N]`.

    Args:
        weight_NN: W.
        gram_NN: G, in the same dtype: fp32 or fp64.
        count: F.
    """
    if len(gram_NN) >= _MANY * count:
        return _iterated(weight_NN, gram_NN, count)
    # In fp64 also where G is known in fp32: small differences between rows, which decide, survive the triple product.
    root_NN = _root(weight_NN)
    vectors: torch.Tensor = torch.linalg.eigh(root_NN @ gram_NN.double() @ root_NN.mT).eigenvectors[:, -count:]
    return vectors.mT @ root_NN


def lost_energy(weight_NN: torch.Tensor, gram_NN: torch.Tensor, count: int) -> float:
    """Return what `leading_mixtures` cannot keep; arguments as there."""
    root_NN = _root(weight_NN)
    energies_N = torch.linalg.eigvalsh(root_NN @ gram_NN.double() @ root_NN.mT)
    return float(energies_N[:-count].clamp(min=0).sum())  # eigenvalues of 0 come out as rounding of either sign


def firm(moment: torch.Tensor, known_to: torch.dtype) -> torch.Tensor:
    """Return a moment with a little energy in every direction, so that it can be decomposed and solved for.

    Args:
        moment: Positive semidefinite.
        known_to: Dtype of the numbers that it was made of: what is added is what they are rounded by.
    """
    # Where everything is zero the floor is a number whose square is still one, so that no solve divides by 0.
    size = (moment.diagonal().mean() * _NEGLIGIBLE[known_to]).clamp(min=torch.finfo(moment.dtype).tiny ** 0.5)
    return moment + size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def _root(weight_NN: torch.Tensor) -> torch.Tensor:
    """Return T, fp64."""
    # W is singular where nothing reads some direction (zeros in Wo, more rows than outputs); Cholesky takes none such.
    firm_NN = firm(weight_NN.double(), weight_NN.dtype)
    lower_NN, failed = torch.linalg.cholesky_ex(firm_NN)
    root_NN: torch.Tensor = lower_NN.mT
    if failed:
        # Sizes so uneven that rounding of the largest leaves some of the smallest below zero: what is below is nothing.
        sizes, vectors = torch.linalg.eigh(firm_NN)
        root_NN = sizes.clamp(min=0).sqrt()[:, None] * vectors.mT
    return root_NN


def _iterated(weight_NN: torch.Tensor, gram_NN: torch.Tensor, count: int) -> torch.Tensor:
    """Return leading mixtures by subspace iteration: p = Tᵀu of an eigenvector u of T G Tᵀ is one of W G, without T."""
    generator, dtype = torch.Generator().manual_seed(0), gram_NN.dtype
    start_NS = torch.randn(len(gram_NN), _MORE * count, generator=generator, dtype=dtype).to(gram_NN.device)
    found_NS = torch.linalg.qr(weight_NN @ start_NS).Q
    total, before = float((weight_NN * gram_NN).sum(dtype=torch.float64)), 0.0  # tr(W G): all energy that is read
    for _ in range(_ROUNDS):
        seen_NS = gram_NN @ found_NS
        read_NS = weight_NN @ seen_NS
        # A mixture p, its rows sought by least squares, keeps pᵀ G W G p of the energy for each pᵀ G p. The best F in
        # the subspace diagonalise both (Rayleigh and Ritz); these matrices are small, so fp64 costs nothing.
        whole_SS, kept_SS = found_NS.mT @ seen_NS, seen_NS.mT @ read_NS
        values, turn_SS = _relative(kept_SS.double(), whole_SS.double(), dtype)
        mixing_FN: torch.Tensor = turn_SS[:, -count:].mT @ found_NS.double().mT
        kept = float(values[-count:].sum())
        if kept - before <= _ENOUGH * (total - kept) + torch.finfo(dtype).eps * total:
            break
        before, found_NS = kept, torch.linalg.qr(read_NS).Q
    return mixing_FN


def _relative(
    kept_SS: torch.Tensor, whole_SS: torch.Tensor, known_to: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of one moment in units of another, ascending, and what diagonalises both."""
    sizes, vectors = torch.linalg.eigh(whole_SS)
    # Rows that are copies of a few have fewer directions than S. The others are rounding, which 1/√size would blow up
    # to unit length: they are left out, and come back with an eigenvalue of 0, behind all others.
    used = sizes > sizes[-1] * _NEGLIGIBLE[known_to]
    scale = torch.where(used, sizes.clamp(min=torch.finfo(sizes.dtype).tiny).rsqrt(), torch.zeros_like(sizes))
    white_SS = vectors * scale
    values, turn_SS = torch.linalg.eigh(white_SS.mT @ kept_SS @ white_SS)
    return values, white_SS @ turn_SS
