"""New heads drawn at random, the lower baseline of the GQA paper."""

import torch


def random(heads_RN: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a head drawn from a normal distribution, `[N]`.

    The distribution has the mean and the standard deviation of the numbers that it replaces, so
    that projections, biases and norm gains keep their scale. The baseline of Ainslie et al. 2023,
    figure 4 ("Random"), draws from the initialisation instead, which a checkpoint does not record.

    Args:
        heads_RN: The R heads of a group, N numbers each, in the dtype of accumulation.
        generator: Source of the random numbers.
    """
    drawn_N = heads_RN.new_empty(heads_RN.shape[1]).normal_(generator=generator)
    return drawn_N * heads_RN.std(correction=0) + heads_RN.mean()
