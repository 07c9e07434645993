"""The first head of each group, a baseline of the GQA paper."""

import torch


def first(heads_RN: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the first head of a group, `[N]`.

    Source: Ainslie et al. 2023, figure 4 ("First").

    Args:
        heads_RN: The R heads of a group, N numbers each, in the dtype of accumulation.
        generator: Not used.
    """
    return heads_RN[0]
