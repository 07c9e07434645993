"""Trains one layer's attention alone to answer like the original's.

The module is the family's own, called with the arguments that it gets in the real forward pass, so masks,
windows, norms, gates and soft caps are what they are.

Legend: B sequences of a batch, T tokens, D model width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mha2gqa.refine.descend import Descent, descend
from mha2gqa.refine.replay import Example


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
