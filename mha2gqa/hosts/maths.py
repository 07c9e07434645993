"""What becomes of tensors between two classes: rows cut and re-ordered, layer norms folded into what reads them.

Everything but `fold_*` only moves numbers. A product is rounded once, to the dtype of the file, by torch itself; sums
of products are in float64, and rounded by whoever writes the result.

Legend: H heads, E width of one head, P rotary planes, D width of what is read, R rows, N numbers of a row (none for a
bias).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_BLOCK = 1024
"""Rows that are in float64 at a time."""


def order_rows(tensor_RN: "torch.Tensor", order: Sequence[int]) -> "torch.Tensor":
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


def spread(rotary: int, width: int) -> list[int]:
    """Return the row order that makes half-split planes of the first `rotary` rows half-split planes of all rows.

    Planes p < P stay planes p; the rows that are not rotated make up the others, which must have frequency 0.
    """
    planes, rest = rotary // 2, (width - rotary) // 2
    unturned = range(rotary, width)
    return [*range(planes), *unturned[:rest], *range(planes, rotary), *unturned[rest:]]


def cut(tensor_RN: "torch.Tensor", part: int, blocks: int) -> "torch.Tensor":
    """Return one of three parts of a tensor that consists of blocks of three: a head's q, k and v, for example."""
    parts = tensor_RN.reshape(blocks, 3, -1, *tensor_RN.shape[1:])
    return parts[:, part].flatten(0, 1)


def interleave(q_RN: "torch.Tensor", k_RN: "torch.Tensor", v_RN: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Return the rows of q, k and v head by head: the inverse of `cut` with a block for each head."""
    import torch

    parts = [tensor.reshape(heads, -1, *tensor.shape[1:]) for tensor in (q_RN, k_RN, v_RN)]
    return torch.stack(parts, 1).flatten(0, 2)


def fold_gain(weight_RD: "torch.Tensor", gain_D: "torch.Tensor") -> "torch.Tensor":
    """Return `W·diag(g)`: the weight that reads a norm without its gain."""
    return weight_RD * gain_D


def fold_shift(
    weight_RD: "torch.Tensor", shift_D: "torch.Tensor", bias_R: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return `W·b + c`: the bias of what reads a norm without its own bias b."""
    import torch

    products = torch.cat([block_RD.double() @ shift_D.double() for block_RD in weight_RD.split(_BLOCK)])
    return products if bias_R is None else products + bias_R.double()
