"""Adam on some parameters for some hundred batches: the one loop of all training during a conversion.

The step size of a matrix follows the size of its entries, and falls to zero (cosine): heads of different layers and
families then need no tuning. What is learned is the caller's. Uptraining has transformers' Trainer instead.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mha2gqa.progress import Advance

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How parameters are trained."""

    steps: int = 300
    """Optimiser steps, one batch each."""
    rate: float = 0.1
    """Step size at the start, as a share of the mean absolute entry of each tensor."""
    seed: int = 0
    """Of the order of the batches."""


def descend(
    parameters: Sequence[torch.Tensor],
    batches: Sequence[Item],
    loss: Callable[[Item], torch.Tensor],
    options: Descent,
    advance: Advance = lambda done, total: None,
) -> None:
    """Train parameters in place.

    Args:
        parameters: Leaves that need a gradient.
        batches: What is learned from; all of them in one order after the other that the seed gives.
        loss: Gives the loss of a batch, a scalar, by the parameters as they are.
        options: How.
        advance: Told of every step.
    """
    groups = [{"params": [one], "lr": options.rate * _entry_size(one)} for one in parameters]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / options.steps))
    )
    generator = torch.Generator().manual_seed(options.seed)
    order: list[int] = []
    for _ in range(options.steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        value = loss(batches[order.pop()])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        advance(1, options.steps)


def _entry_size(tensor: torch.Tensor) -> float:
    """Return the mean absolute entry, by which step sizes are measured; a small number for one that is zero."""
    size = float(tensor.detach().abs().mean())
    return size or 1e-3
