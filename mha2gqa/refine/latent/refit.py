"""Refits what reads the latent: values and outputs of a layer, in closed form and in turn.

Given its attention weights, a layer gives Σ_h O_h B_h z_h with z_h = Σ_j a_j c_j what head h makes of the latent:
linear in O and in B, as a mixture of rows is in `refine/refit_values.py`, with the latent's C channels for rows and one
mixture a query head. So values come to serve the tokens that heads do attend to, and errors of heads are weighed
together as they are; the fit (`targets/latent/costs.py`) must guess both.

Legend: as in `modules.py`, M = H·C.
"""

from collections.abc import Iterable

import torch
from torch import nn

from mha2gqa.refine.latent.modules import OUTPUT, values_of
from mha2gqa.refine.refit import of_projection, projected
from mha2gqa.refine.refit_values import Bilinear
from mha2gqa.refine.replay import Call, Example
from mha2gqa.targets.latent.config import HostShape


@torch.no_grad()
def refit_latent(
    module: nn.Module, shape: HostShape, examples: Iterable[Example], aside: Iterable[Example], device: torch.device
) -> None:
    """Refit a module's values and output projection.

    Args:
        module: The host's attention module, fitted; changed in place.
        shape: Its widths.
        examples: Calls of it, and for each the output `[B, T, D]` that is wanted.
        aside: More of them, by which it is seen how far the others lead.
        device: Where to compute.
    """
    value_HFC, output = values_of(module, shape), module.get_parameter(f"{OUTPUT}.weight")
    before_HFC = value_HFC.clone()

    def sums(of: Iterable[Example]) -> Bilinear:
        total = Bilinear.empty(shape.heads, shape.latent, len(output), 1, device)
        for call, wanted in of:
            total.add(_read(module, shape, call, device).flatten(1), of_projection(module, OUTPUT, wanted, device))
        return total

    found_HFC, found_DZ = sums(examples).solve(before_HFC.double(), output.detach().double(), sums(aside))
    value_HFC.copy_(found_HFC)
    output.copy_(found_DZ)


def _read(module: nn.Module, shape: HostShape, call: Call, device: torch.device) -> torch.Tensor:
    """Return what heads make of the latent in a call, `[N, H, C]`: as many channels at a time as values have."""
    value_HFC = values_of(module, shape)
    eye_CC = torch.eye(shape.latent, dtype=value_HFC.dtype, device=value_HFC.device)
    seen = []
    for channels in eye_CC.split(shape.value_width):
        value_HFC.zero_()
        value_HFC[:, : len(channels)] = channels
        z_NHF = projected(module, OUTPUT, call, device).unflatten(1, (shape.heads, -1))
        seen.append(z_NHF[..., : len(channels)])
    return torch.cat(seen, dim=-1)
