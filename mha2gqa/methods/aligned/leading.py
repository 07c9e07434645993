"""The mixtures of rows that keep most of what is read of them.

With G the Gram matrix of N rows in the metric of their inputs and W = Tᵀ T how much errors of them matter, these are
the leading eigenvectors of T G Tᵀ, times T (Eckart and Young 1936). A few rows are decomposed as a whole. Of many,
only the wanted directions are sought, by subspace iteration (Halko, Martinsson and Tropp 2011, section 4.5), with two
products a round and without T; that is exact where no more directions are used than are wanted, and where energies
fall slowly it stops at directions that keep nearly as much, which is all that a merge asks of them. (torch.lobpcg wants
a positive definite G, and rows that are copies of a few have none.)

Legend: N rows, F wanted mixtures, S columns of a subspace.
"""

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


def leading_mixtures(weight_NN: torch.Tensor, gram_NN: torch.Tensor, count: int) -> torch.Tensor:
    """Return mixtures of the rows in fp64, `[F, N]`.

    Args:
        weight_NN: W.
        gram_NN: G, in the same dtype: fp32 or fp64.
        count: F.
    """
    if len(gram_NN) >= _MANY * count:
        return _iterated(weight_NN, gram_NN, count)
    root_NN = _root(weight_NN)
    vectors: torch.Tensor = torch.linalg.eigh(root_NN @ gram_NN.double() @ root_NN.mT).eigenvectors[:, -count:]
    return vectors.mT @ root_NN


def lost_energy(weight_NN: torch.Tensor, gram_NN: torch.Tensor, count: int) -> float:
    """Return what `leading_mixtures` cannot keep; arguments as there."""
    root_NN = _root(weight_NN)
    energies_N = torch.linalg.eigvalsh(root_NN @ gram_NN.double() @ root_NN.mT)
    return float(energies_N[:-count].clamp(min=0).sum())


def firm(moment: torch.Tensor, known_to: torch.dtype) -> torch.Tensor:
    """Return a moment with a little energy in every direction, so that it can be decomposed and solved for."""
    size = (moment.diagonal().mean() * _NEGLIGIBLE[known_to]).clamp(min=torch.finfo(moment.dtype).tiny ** 0.5)
    return moment + size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def _root(weight_NN: torch.Tensor) -> torch.Tensor:
    """Return T, fp64."""
    lower: torch.Tensor = torch.linalg.cholesky(firm(weight_NN.double(), weight_NN.dtype))
    return lower.mT


def _iterated(weight_NN: torch.Tensor, gram_NN: torch.Tensor, count: int) -> torch.Tensor:
    generator, dtype = torch.Generator().manual_seed(0), gram_NN.dtype
    start_NS = torch.randn(len(gram_NN), _MORE * count, generator=generator, dtype=dtype).to(gram_NN.device)
    found_NS = torch.linalg.qr(weight_NN @ start_NS).Q
    total, before = float((weight_NN * gram_NN).sum(dtype=torch.float64)), 0.0
    for _ in range(_ROUNDS):
        seen_NS = gram_NN @ found_NS
        read_NS = weight_NN @ seen_NS
        whole_SS, kept_SS = found_NS.mT @ seen_NS, seen_NS.mT @ read_NS
        values, turn_SS = _relative(kept_SS.double(), whole_SS.double(), dtype)
        kept = float(values[-count:].sum())
        if kept - before <= _ENOUGH * (total - kept) + torch.finfo(dtype).eps * total:
            break
        before, found_NS = kept, torch.linalg.qr(read_NS).Q
    mixing_FN: torch.Tensor = turn_SS[:, -count:].mT @ found_NS.double().mT
    return mixing_FN


def _relative(
    kept_SS: torch.Tensor, whole_SS: torch.Tensor, known_to: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of one moment in units of another, ascending, and what diagonalises both."""
    sizes, vectors = torch.linalg.eigh(whole_SS)
    used = sizes > sizes[-1] * _NEGLIGIBLE[known_to]
    scale = torch.where(used, sizes.clamp(min=torch.finfo(sizes.dtype).tiny).rsqrt(), torch.zeros_like(sizes))
    white_SS = vectors * scale
    values, turn_SS = torch.linalg.eigh(white_SS.mT @ kept_SS @ white_SS)
    return values, white_SS @ turn_SS
