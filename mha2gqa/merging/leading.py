"""Leading eigenvectors of a Gram matrix: all of a small one's, and of a large one's only those that are wanted.

A full decomposition of a group of 32 heads of 128 takes twenty times what a few products with its matrix take.
Subspace iteration with Rayleigh and Ritz's choice (Halko, Martinsson and Tropp 2011, section 4.5) is exact where no
more directions are used than are wanted; where the spectrum falls slowly it stops at directions that keep nearly as
much, which is all that a merge asks of them.
"""

import torch

_LARGE = 8
"""From this many times the wanted directions on, they are sought by iteration."""
_MORE = 2
"""The iteration's subspace, in multiples of the wanted directions."""
_ENOUGH = 1e-3
"""It ends when a round keeps less more than this share of what is lost."""
_ROUNDS = 20


def leading_eigenvectors(gram: torch.Tensor, count: int) -> torch.Tensor:
    """Return orthonormal columns that keep as much of a Gram matrix as any.

    Args:
        gram: `[N, N]`, fp64.
        count: How many.
    """
    if len(gram) < _LARGE * count:
        all_of_them: torch.Tensor = torch.linalg.eigh(gram).eigenvectors
        return all_of_them[:, -count:]
    start = torch.randn(len(gram), _MORE * count, generator=torch.Generator().manual_seed(0), dtype=gram.dtype)
    basis = torch.linalg.qr(gram @ start.to(gram.device)).Q
    total, before = float(gram.trace()), 0.0
    for _ in range(_ROUNDS):
        seen = gram @ basis
        values, vectors = torch.linalg.eigh(basis.mT @ seen)
        kept = float(values[-count:].sum())
        if kept - before <= _ENOUGH * max(total - kept, torch.finfo(gram.dtype).eps * total):
            break
        before, basis = kept, torch.linalg.qr(seen).Q
    leading: torch.Tensor = basis @ vectors[:, -count:]
    return leading
