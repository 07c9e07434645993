"""Products that are known to be symmetric: torch has no call that computes one half of them alone."""

import torch

_LARGE = 512
"""From this size on, half a product saves more than its pieces cost."""
_PIECES = 4
"""With so many, five eighths are computed."""


def symmetric_product(left_NX: torch.Tensor, right_NX: torch.Tensor) -> torch.Tensor:
    """Return `left @ rightᵀ`, `[..., N, N]`, of which the caller knows that it is symmetric."""
    size = left_NX.shape[-2]
    if left_NX.ndim > 2 or size < _LARGE:
        return left_NX @ right_NX.mT
    product = left_NX.new_empty(size, size)
    step = -(-size // _PIECES)
    for start in range(0, size, step):
        stop = min(start + step, size)
        below = left_NX[start:] @ right_NX[start:stop].mT
        product[start:, start:stop] = below
        product[start:stop, stop:] = below[stop - start :].mT
    return product
