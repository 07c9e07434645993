"""Refits a layer's output projection in closed form, so that the converted layer answers like the original.

With z the concatenated heads of the converted layer and y the original layer's output, the projection W that
minimises Σ |W z - y|² + λ |W - W₀|² is (Y Zᵀ + λ W₀)(Z Zᵀ + λ)⁻¹: ridge regression towards the merged W₀. How much the
text can be believed says text kept aside: λ is the one that loses least there, which takes no more than the sums over
that text. Where a module does more behind its projection (BERT: a residual and a norm), y is what the original's own
projection returns.

Legend: B sequences of a batch, T tokens, N of all sequences, D model width, Z width of the concatenated heads.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mha2gqa.heads.metric import symmetric_product
from mha2gqa.refine.replay import Call, Example

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
"""λ as a share of the mean energy of an entry of z, from what hardly leaves the merge to what hardly holds on to it."""
_AS_GOOD = 0.02
"""How much more of the output may be lost on other text than by the best λ. What a firm hold leaves is the same error
in every token, and adds up over layers; what a loose one makes of chance does not: SmolLM2-135M loses .512 for .516
with 8,192 tokens."""
_MIXED = 128
"""Mixtures of outputs by which λ is chosen."""


@dataclass
class Linear:
    """Sums over tokens, fp64: all that regression needs, so that memory does not grow with the text."""

    moment_ZZ: torch.Tensor
    """Of z zᵀ."""
    cross_DZ: torch.Tensor
    """Of y zᵀ."""
    energy: float = 0.0
    """Of |y|²."""

    @torch.no_grad()
    def add(self, module: nn.Module, output: str, examples: Iterable[Example], device: torch.device) -> "Linear":
        """Take in what a module's output projection is given in calls, and what is wanted of it; return the sums."""
        # In fp64, as normal equations square the condition of Z, and heads that were one head are nearly the same
        # inputs twice.
        for call, wanted in examples:
            z_NZ, y_ND = projected(module, output, call, device), of_projection(module, output, wanted, device)
            self.moment_ZZ += symmetric_product(z_NZ.mT, z_NZ.mT)
            self.cross_DZ += y_ND.mT.to(z_NZ.dtype) @ z_NZ
            self.energy += float(y_ND.square().sum(dtype=torch.float64))
        return self

    def error(self, weight_DZ: torch.Tensor) -> float:
        """Return Σ |W z - y|² as a share of Σ |y|²; where that was not summed, how much less it is."""
        lost = self.energy + float((weight_DZ * (weight_DZ @ self.moment_ZZ - 2 * self.cross_DZ)).sum())
        return lost / self.energy if self.energy else lost

    def solve(self, before_DZ: torch.Tensor, ridge: float) -> torch.Tensor:
        """Return W for one of `RIDGES`, held to W₀."""
        # Towards W₀, not towards 0: what the text never showed stays as the merge made it.
        size = ridge * self.moment_ZZ.diagonal().mean()
        firm_ZZ = self.moment_ZZ + size * torch.eye(len(self.moment_ZZ)).to(self.moment_ZZ)
        found_ZD = torch.cholesky_solve((self.cross_DZ + size * before_DZ).mT, torch.linalg.cholesky(firm_ZZ))
        return found_ZD.mT

    def fit(self, before_DZ: torch.Tensor, aside: "Linear") -> tuple[torch.Tensor, float]:
        """Return W and its λ: of `RIDGES` the least firm that loses hardly more on other text than the best does."""
        # Solving for every output takes most of the time, and some random mixtures of them tell as much of λ.
        few, other, held = self, aside, before_DZ
        if len(before_DZ) > _MIXED:
            generator = torch.Generator().manual_seed(0)
            mix = torch.randn(_MIXED, len(before_DZ), generator=generator, dtype=before_DZ.dtype).to(before_DZ.device)
            few, other = (Linear(one.moment_ZZ, mix @ one.cross_DZ, _MIXED * one.energy) for one in (self, aside))
            held = mix @ before_DZ
        chosen, least = RIDGES[0], math.inf
        for ridge in RIDGES:
            error = other.error(few.solve(held, ridge))
            least = min(least, error)
            if not error <= least + _AS_GOOD * abs(least):
                break
            chosen = ridge
        return self.solve(before_DZ, chosen), chosen


@torch.no_grad()
def refit(
    module: nn.Module, output: str, examples: Iterable[Example], aside: Iterable[Example], device: torch.device
) -> None:
    """Refit a module's output projection on calls of the module and what is wanted of the projection.

    Args:
        module: The converted attention module; changed in place.
        output: Path of its output projection, a linear module.
        examples: Calls, and for each the output `[B, T, D]` that the projection should have.
        aside: More of them, by which it is seen how far the others lead.
        device: Where to compute.
    """
    weight = module.get_submodule(output).get_parameter("weight")
    before_DZ = weight.double()

    def sums(of: Iterable[Example]) -> Linear:
        empty = Linear(before_DZ.new_zeros(before_DZ.shape[1], before_DZ.shape[1]), torch.zeros_like(before_DZ))
        return empty.add(module, output, of, device)

    weight.copy_(sums(examples).fit(before_DZ, sums(aside))[0])


@torch.no_grad()
def ends_in(module: nn.Module, output: str, call: Call, device: torch.device) -> bool:
    """Return whether a module's output is that of its output projection, with nothing behind it."""
    # Equal to the bit, or there is something behind it: a gate, a residual or a norm changes some bit of some token.
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(output).register_forward_hook(lambda _m, _args, out: seen.append(out))
    try:
        answer = call.run(module, device)
    finally:
        handle.remove()
    return answer.shape == seen[0].shape and torch.equal(answer, seen[0])


def projected(module: nn.Module, output: str, call: Call, device: torch.device) -> torch.Tensor:
    """Return what a module's output projection is given in a call, in fp32 or more, `[N, Z]`."""
    return _precise(call.given(module, output, device).flatten(0, -2))


def of_projection(module: nn.Module, output: str, wanted: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a wanted output less the projection's bias, in fp32 or more, `[N, D]`."""
    bias = getattr(module.get_submodule(output), "bias", None)
    y_ND = _precise(wanted.to(device).flatten(0, -2))
    return y_ND if bias is None else y_ND - bias


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
