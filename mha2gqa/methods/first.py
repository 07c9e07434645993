"""The first head of each group, a baseline of the GQA paper."""

from typing import TYPE_CHECKING

from mha2gqa.methods import Array

if TYPE_CHECKING:
    import torch


def first(heads_RN: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Return the first head of a group, `[N]`.

    Source: Ainslie et al. 2023, figure 4 ("First").

    Args:
        heads_RN: The R heads of a group, N numbers each, in the dtype of accumulation.
        generator: Not used.
    """
    return heads_RN[0]


def first_of_arrays(heads_RN: Array) -> Array:
    """Return the same of a numpy array."""
    head_N: Array = heads_RN[0]
    return head_N
