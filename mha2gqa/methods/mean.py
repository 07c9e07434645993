"""Mean pooling, the conversion of the GQA paper."""

from typing import TYPE_CHECKING

import numpy as np

from mha2gqa.methods import Array

if TYPE_CHECKING:
    import torch

_LEVELS = 4


def mean(heads_RN: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Return the mean of a group's heads, `[N]`.

    Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from
    Multi-Head Checkpoints", section 2.1.

    Args:
        heads_RN: The R heads of a group, N numbers each, in the dtype of accumulation.
        generator: Not used.
    """
    # Heads that `expand` has repeated must come back to the bit. The sum of copies of a 16-bit number is exact in fp32.
    if heads_RN.dtype.itemsize < 8:
        return heads_RN.mean(dim=0)
    # In fp64 the source may be as wide as the sum: (x + x + x) / 3 need not be x then, x + the mean of zeros is.
    first_N = heads_RN[0]
    return first_N + (heads_RN - first_N).mean(dim=0)


def mean_of_arrays(heads_RN: Array) -> Array:
    """Return the same of a numpy array, every bit as torch gives it for R up to 4, or N a multiple of 64.

    Args:
        heads_RN: The R heads of a group, N numbers each, in fp32 or fp64.
    """
    if heads_RN.dtype.itemsize < 8:
        return _sum(heads_RN) / np.float32(len(heads_RN))
    first_N = heads_RN[0]
    mean_N: Array = first_N + _sum(heads_RN - first_N) / len(heads_RN)
    return mean_N


def _sum(heads_RN: Array) -> Array:
    """Add in the order in which torch adds (its SumKernel.cpp): in runs, and runs of runs, so that errors grow less."""
    run = 1 << max(4, (len(heads_RN) - 1).bit_length() // _LEVELS)
    sums = np.zeros((_LEVELS, heads_RN.shape[1]), heads_RN.dtype)
    for number, head_N in enumerate(heads_RN, 1):
        sums[0] += head_N
        for level in range(1, _LEVELS):
            if number % run**level:
                break
            sums[level] += sums[level - 1]
            sums[level - 1] = 0
    for level in range(1, _LEVELS):
        sums[0] += sums[level]
    total_N: Array = sums[0]
    return total_N
