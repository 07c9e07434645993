"""Adam on some parameters for some hundred batches: the one loop of all training during a conversion.

The step size of a matrix follows the size of its entries and its width, and falls to zero (cosine): heads of different
layers and families, and models of different sizes, then need no tuning. What is learned is the caller's; `distil`
trains one layer's attention alone to answer like the original's. The module is the family's own, called with the
arguments that it gets in the real forward pass, so masks, windows, norms, gates and soft caps are what they are.
Uptraining has transformers' Trainer instead.

Legend: B sequences of a batch, T tokens, D model width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from mha2gqa.progress import Advance
from mha2gqa.refine.replay import Example

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How parameters are trained."""

    steps: int
    """Optimiser steps, one batch each."""
    rate: float = 0.1
    """Step size at the start, as a share of the mean absolute entry of each tensor; of matrices with `_NARROW` columns.
    """
    seed: int = 0
    """Of the order of the batches."""


_NARROW = 64
"""Columns of a matrix whose steps are as long as `Descent.rate` says. Adam moves all entries of a row by the same
length at once, so what a step changes in an output grows with the row, while entries of usual size shrink with its
root: steps are shorter by that (as in Yang et al. 2022, Tensor Programs V, arXiv 2203.03466, for hidden matrices). In
SmolLM2-135M, 576 wide, 0.1 of an entry loses as much of layer 8's output on other text as no training at all, and 0.03
and 0.015 lose half of that."""


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
    groups = [{"params": [one], "lr": options.rate * _step(one)} for one in parameters]
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


def _step(tensor: torch.Tensor) -> float:
    """Return the length by which rates are measured."""
    size = float(tensor.detach().abs().mean()) or 1e-3  # of one that is zero
    return size * math.sqrt(_NARROW / tensor.shape[-1]) if tensor.dim() > 1 else size


def distil(
    module: nn.Module, names: Sequence[str], examples: Sequence[Example], options: Descent, device: torch.device
) -> None:
    """Train parameters of a module on calls and the outputs that are wanted of them.

    Args:
        module: The converted attention module in fp32; changed in place.
        names: Parameters to train.
        examples: Calls, and the original's outputs `[B, T, D]` for them.
        options: How.
        device: Where the module is.
    """

    def loss(example: Example) -> torch.Tensor:
        call, wanted = example
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            answer = call.run(module, device, torch.float32)
        return relative_error(answer.float(), wanted.to(device))

    parameters = [module.get_parameter(name).requires_grad_() for name in names]
    descend(parameters, examples, loss, options)
    for one in parameters:
        one.requires_grad_(False)


def relative_error(answer: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the squared error as a share of the wanted output's energy, a scalar."""
    wanted = wanted.to(answer.dtype)
    return (answer - wanted).square().mean() / wanted.square().mean()
