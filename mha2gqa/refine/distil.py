"""Trains one layer's attention alone to answer like the original's: a few hundred steps of Adam.

The module is the family's own, called with the arguments that it gets in the real forward pass, so masks,
windows, norms, gates and soft caps are what they are. The step size of a matrix follows the size of its
entries: heads of different layers and families then need no tuning.

Legend: B sequences of a batch, T tokens, D model width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mha2gqa.refine.replay import Pair


@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """How a layer is trained."""

    steps: int = 300
    """Optimiser steps, one batch each."""
    rate: float = 0.1
    """Step size at the start, as a share of the mean absolute entry of each tensor; it falls to zero (cosine)."""
    seed: int = 0
    """Of the order of the batches."""


def distil(
    module: nn.Module,
    names: Sequence[str],
    pairs: Sequence[Pair],
    options: DistilOptions,
    device: torch.device,
) -> None:
    """Train parameters of a module on calls and the outputs that are wanted of them.

    Args:
        module: The converted attention module in fp32; changed in place.
        names: Parameters to train.
        pairs: Calls, and the original's outputs `[B, T, D]` for them.
        options: How.
        device: Where the module is.
    """
    parameters = [module.get_parameter(name) for name in names]
    groups = [{"params": [one], "lr": options.rate * entry_size(one)} for one in parameters]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95), foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / options.steps))
    )
    generator = torch.Generator().manual_seed(options.seed)
    for one in parameters:
        one.requires_grad_()
    order: list[int] = []
    for _ in range(options.steps):
        order = order or torch.randperm(len(pairs), generator=generator).tolist()
        call, wanted = pairs[order.pop()]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            answer = call.run(module, device, torch.float32)
        loss = relative_error(answer.float(), wanted.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    for one in parameters:
        one.requires_grad_(False)


def relative_error(answer: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the squared error as a share of the wanted output's energy, a scalar."""
    wanted = wanted.to(answer.dtype)
    return (answer - wanted).square().mean() / wanted.square().mean()


def entry_size(tensor: torch.Tensor) -> float:
    """Return the mean absolute entry, by which step sizes are measured; a small number for one that is zero."""
    size = float(tensor.detach().abs().mean())
    return size or 1e-3
