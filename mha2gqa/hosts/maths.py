"""What becomes of tensors between two classes: rows cut and re-ordered, layer norms folded into what reads them.

Everything but `fold_*` only moves numbers; what computes does so in float64, and is rounded by the caller, once.

Legend: H heads, E width of one head, P rotary planes, D width of the model, N numbers of a row (none for a bias).
"""

from collections.abc import Sequence

import torch


def order_rows(tensor_RN: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Re-order the rows of each head; `order` has one row number of the head for each row of the result."""
    heads_HEN = tensor_RN.reshape(-1, len(order), *tensor_RN.shape[1:])
    return heads_HEN[:, list(order)].flatten(0, 1)


def halves(rotary: int, width: int) -> list[int]:
    """Return the row order that makes interleaved rotary planes (0 1, 2 3, ...) half-split ones (0 P, 1 P+1, ...).

    Args:
        rotary: Rows of a head that are rotated, 2P; they come first.
        width: E.
    """
    return [*range(0, rotary, 2), *range(1, rotary, 2), *range(rotary, width)]
