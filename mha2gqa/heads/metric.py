"""The metric in which merging gives something up: what the inputs of a layer are like.

An error E in a row of weights costs E M Eᵀ with M the second moment of what the row is multiplied with. A merge
asks for no more than `gram`s and `energies` of rows, so a moment need not be a full matrix: `Even` is none at all
(inputs that are uncorrelated and of equal size), `Full` one that was measured, `LowRank` a guess that costs a
hundredth of the arithmetic. Where these come from is `refine`'s (`statistics.py`, `prior.py`).

Legend: N rows, X inputs, S columns of a factor.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

_LARGE = 512
"""From this size on, half a product saves more than its pieces cost."""
_PIECES = 4
"""With so many, five eighths are computed."""


class Metric(Protocol):
    """A second moment M of inputs, positive semidefinite."""

    def gram(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return R M Rᵀ, `[..., N, N]`, of real rows `[..., N, X]`."""
        ...

    def energies(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return the diagonal of `gram`, `[..., N]`."""
        ...

    def like(self, tensor: torch.Tensor) -> "Metric":
        """Return the metric in a tensor's dtype and on its device."""
        ...


@dataclass(frozen=True)
class Even:
    """M is the identity."""

    def gram(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return R Rᵀ."""
        return symmetric_product(rows_NX, rows_NX)

    def energies(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return the squared lengths."""
        return rows_NX.square().sum(dim=-1)

    def like(self, tensor: torch.Tensor) -> "Even":
        """Return this."""
        del tensor
        return self


@dataclass(frozen=True)
class Full:
    """M as it is."""

    moment_XX: torch.Tensor

    def gram(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return R M Rᵀ."""
        return symmetric_product(rows_NX @ self.moment_XX, rows_NX)

    def energies(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return the diagonal of R M Rᵀ."""
        return (rows_NX @ self.moment_XX * rows_NX).sum(dim=-1)

    def like(self, tensor: torch.Tensor) -> "Full":
        """Return the metric in a tensor's dtype and on its device."""
        return Full(self.moment_XX.to(tensor))


@dataclass(frozen=True)
class LowRank:
    """M = diag(d) + F Fᵀ."""

    diagonal_X: torch.Tensor
    factor_XS: torch.Tensor

    def gram(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return R diag(d) Rᵀ + (R F)(R F)ᵀ."""
        # Two products with N·X and N·S numbers in the place of one with X·X: M itself is never made.
        seen_NS = rows_NX @ self.factor_XS
        return symmetric_product(rows_NX * self.diagonal_X, rows_NX) + symmetric_product(seen_NS, seen_NS)

    def energies(self, rows_NX: torch.Tensor) -> torch.Tensor:
        """Return the diagonal of the same."""
        return rows_NX.square() @ self.diagonal_X + (rows_NX @ self.factor_XS).square().sum(dim=-1)

    def like(self, tensor: torch.Tensor) -> "LowRank":
        """Return the metric in a tensor's dtype and on its device."""
        return LowRank(self.diagonal_X.to(tensor), self.factor_XS.to(tensor))


def symmetric_product(left_NX: torch.Tensor, right_NX: torch.Tensor) -> torch.Tensor:
    """Return `left @ rightᵀ`, `[..., N, N]`, of which the caller knows that it is symmetric."""
    size = left_NX.shape[-2]
    if left_NX.ndim > 2 or size < _LARGE:
        return left_NX @ right_NX.mT
    # Block columns from the diagonal down, each mirrored to the right of it: the pieces above are never multiplied.
    product = left_NX.new_empty(size, size)
    step = -(-size // _PIECES)
    for start in range(0, size, step):
        stop = min(start + step, size)
        below = left_NX[start:] @ right_NX[start:stop].mT
        product[start:, start:stop] = below
        product[start:stop, stop:] = below[stop - start :].mT
    return product
