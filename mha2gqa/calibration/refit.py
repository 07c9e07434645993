"""Refits a layer's output projection in closed form, so that the converted layer answers like the original.

With z the concatenated heads of the converted layer and y the original layer's output, the projection W that
minimises Σ |W z - y|² + λ |W - W₀|² is (Y Zᵀ + λ W₀)(Z Zᵀ + λ)⁻¹: ridge regression towards the merged W₀.

Legend: B sequences of a batch, T tokens, D model width, Z width of the concatenated heads.
"""

from collections.abc import Iterable

import torch
from torch import nn

from mha2gqa.calibration.replay import Call
from mha2gqa.symmetric import symmetric_product

RIDGE = 1e-4
"""λ as a share of the mean energy of an entry of z."""


@torch.no_grad()
def refit(module: nn.Module, output: str, pairs: Iterable[tuple[Call, torch.Tensor]], device: torch.device) -> bool:
    """Refit a module's output projection on calls and the outputs that are wanted of them.

    Args:
        module: The converted attention module; changed in place.
        output: Path of its output projection, a linear module.
        pairs: Calls, and the original's outputs `[B, T, D]` for them.
        device: Where to compute.

    Returns:
        Whether it was refitted: the module's output must be that projection's, and nothing behind it.
    """
    projection = module.get_submodule(output)
    weight_DZ = projection.get_parameter("weight").double()
    bias = getattr(projection, "bias", None)
    moment_ZZ = weight_DZ.new_zeros(weight_DZ.shape[1], weight_DZ.shape[1])
    cross_DZ = torch.zeros_like(weight_DZ)
    seen: dict[str, torch.Tensor] = {}
    handle = projection.register_forward_hook(lambda _m, args, out: seen.update(inputs=args[0], outputs=out))
    try:
        for call, wanted in pairs:
            answer = call.run(module, device)
            if answer.shape != seen["outputs"].shape or not torch.equal(answer, seen["outputs"]):
                return False
            z_NZ = seen["inputs"].flatten(0, -2)
            y_ND = wanted.to(device).flatten(0, -2)
            y_ND = y_ND if bias is None else y_ND - bias
            moment_ZZ += symmetric_product(z_NZ.mT, z_NZ.mT).double()
            cross_DZ += (y_ND.mT.to(z_NZ.dtype) @ z_NZ).double()
    finally:
        handle.remove()
    ridge = RIDGE * moment_ZZ.diagonal().mean()
    moment_ZZ.diagonal().add_(ridge)
    refitted = torch.linalg.solve(moment_ZZ, (cross_DZ + ridge * weight_DZ).mT).mT
    projection.get_parameter("weight").copy_(refitted)
    return True
