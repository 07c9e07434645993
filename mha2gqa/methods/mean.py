"""Mean pooling, the conversion of the GQA paper."""

import torch


def mean(heads_RN: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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
