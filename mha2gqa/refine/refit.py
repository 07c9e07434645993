"""Refits a layer's output projection in closed form, so that the converted layer answers like the original.

With z the concatenated heads of the converted layer and y the original layer's output, the projection W that
minimises Σ |W z - y|² + λ |W - W₀|² is (Y Zᵀ + λ W₀)(Z Zᵀ + λ)⁻¹: ridge regression towards the merged W₀. Where a
module does more behind its projection (BERT: a residual and a norm), y is what the original's own projection returns.

Legend: B sequences of a batch, T tokens, N of all sequences, D model width, Z width of the concatenated heads.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mha2gqa.heads.metric import symmetric_product
from mha2gqa.refine.replay import Call, Example

RIDGE = 1e-4
"""λ as a share of the mean energy of an entry of z."""


@torch.no_grad()
def refit(module: nn.Module, output: str, examples: Sequence[Example], device: torch.device) -> None:
    """Refit a module's output projection on calls of the module and what is wanted of the projection.

    Args:
        module: The converted attention module; changed in place.
        output: Path of its output projection, a linear module.
        examples: Calls, and for each the output `[B, T, D]` that the projection should have.
        device: Where to compute.
    """
    weight = module.get_submodule(output).get_parameter("weight")
    weight_DZ = weight.double()
    moment_ZZ = weight_DZ.new_zeros(weight_DZ.shape[1], weight_DZ.shape[1])
    cross_DZ = torch.zeros_like(weight_DZ)
    # Z Zᵀ and Y Zᵀ are all that the solution needs: the memory does not grow with the text. They are summed in fp64, as
    # the normal equations square the condition of Z, and heads that were one head are nearly the same inputs twice.
    for call, wanted in examples:
        z_NZ, y_ND = projected(module, output, call, device), of_projection(module, output, wanted, device)
        moment_ZZ += symmetric_product(z_NZ.mT, z_NZ.mT).double()
        cross_DZ += (y_ND.mT.to(z_NZ.dtype) @ z_NZ).double()
    weight.copy_(ridge_regression(moment_ZZ, cross_DZ, weight_DZ))


def ridge_regression(moment_ZZ: torch.Tensor, cross_DZ: torch.Tensor, before_DZ: torch.Tensor) -> torch.Tensor:
    """Return W, `[D, Z]`.

    Args:
        moment_ZZ: Z Zᵀ.
        cross_DZ: Y Zᵀ.
        before_DZ: W₀.
    """
    # Towards W₀, not towards 0: what the text never showed stays as the merge made it.
    ridge = RIDGE * moment_ZZ.diagonal().mean()
    firm_ZZ = moment_ZZ + ridge * torch.eye(len(moment_ZZ), dtype=moment_ZZ.dtype, device=moment_ZZ.device)
    found: torch.Tensor = torch.linalg.solve(firm_ZZ, (cross_DZ + ridge * before_DZ).mT).mT
    return found


@torch.no_grad()
def ends_in(module: nn.Module, output: str, call: Call, device: torch.device) -> bool:
    """Return whether a module's output is that of its output projection, with nothing behind it."""
    # Equal to the bit, or there is something behind it: a gate, a residual or a norm changes some bit of some token.
    answer, _, seen = _run(module, output, call, device)
    return answer.shape == seen.shape and torch.equal(answer, seen)


def projected(module: nn.Module, output: str, call: Call, device: torch.device) -> torch.Tensor:
    """Return what a module's output projection is given in a call, in fp32 or more, `[N, Z]`."""
    return _precise(_run(module, output, call, device)[1].flatten(0, -2))


def of_projection(module: nn.Module, output: str, wanted: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a wanted output less the projection's bias, in fp32 or more, `[N, D]`."""
    bias = getattr(module.get_submodule(output), "bias", None)
    y_ND = _precise(wanted.to(device).flatten(0, -2))
    return y_ND if bias is None else y_ND - bias


def _run(
    module: nn.Module, output: str, call: Call, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a module's output, and what its output projection is given and returns."""
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(output).register_forward_hook(lambda _m, args, out: seen.extend((args[0], out)))
    try:
        answer = call.run(module, device)
    finally:
        handle.remove()
    given, returned = seen
    return answer, given, returned


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
