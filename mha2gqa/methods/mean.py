"""Mean pooling, the conversion of the GQA paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mean(heads_RN: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the mean of a group's heads, `[N]`.

    Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from
    Multi-Head Checkpoints", section 2.1.

    Args:
        heads_RN: The R heads of a group, N numbers each, in the dtype of accumulation.
        generator: Not used.
    """
    if heads_RN.dtype.itemsize < 8:
        return heads_RN.mean(dim=0)
    # There may be no wider dtype than the source's: the mean of equal heads is then exact only so.
    first_N = heads_RN[0]
    return first_N + (heads_RN - first_N).mean(dim=0)
