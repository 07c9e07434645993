"""The host's attention module taken apart: what its projections hold, and a form of it that can be trained.

In the host's file what is normed is kept tiny, so that the norm is linear (`targets/latent/linear.py`). Nothing can be
learned at that size: steps that suit the rotary rows of `kv_a_proj_with_mqa` are a million times those that suit the
latent's beside them. `without_norms` is the same function with the norms folded into the projections before them, and
`with_norms` brings what was learned back; `free_norms` and `fold_rows` do so for a whole model, whose files stay files.

Legend: H query heads, E width of a query, F of a value, C latent, D model width, Z = H·F.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mha2gqa.targets.latent.config import HostShape
from mha2gqa.targets.latent.linear import EPS

OUTPUT = "o_proj"
_NORMED = (("kv_a_proj_with_mqa", "kv_a_layernorm"), ("q_a_proj", "q_a_layernorm"))
"""Projections of the host's attention, and the norm behind each: over its first rows."""


def trained_names(free: nn.Module) -> list[str]:
    """Return the parameters of a module without norms that training changes: all but a bias of its output.

    What that adds to every output is the source's, and is written without the attention (`targets/latent/tensors.py`).
    """
    return [name for name, _ in free.named_parameters() if name != f"{OUTPUT}.bias"]


@torch.no_grad()
def without_norms(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in a dtype whose projections do what the norms behind them did."""
    free = copy.deepcopy(module).to(dtype)
    _free(free)
    return free


@torch.no_grad()
def free_norms(model: nn.Module) -> None:
    """Fold the norms of all attention modules into the projections before them, in place; names stay what they are."""
    for module in _latent_modules(model):
        _free(module)


@torch.no_grad()
def fold_rows(model: nn.Module, *, back: bool = False) -> None:
    """Make weights of a host those that `free_norms` trains, its norms left where they are, or take them `back`."""
    for module in _latent_modules(model):
        _fold(module, back=back)


def _latent_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, _NORMED[0][1])]


class _Passed(nn.Module):
    """Stands where a norm was: keeps its gains, which files have, and does what is left of it."""

    def __init__(self, gain_N: torch.Tensor) -> None:
        super().__init__()
        self.weight: torch.Tensor
        self.rest: torch.Tensor
        self.register_buffer("weight", gain_N)
        self.register_buffer("rest", gain_N / EPS**0.5 / _power(gain_N), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.rest.to(hidden.dtype)


def _free(module: nn.Module) -> None:
    _fold(module)
    for _, norm, gain_N in _normed(module):
        setattr(module, norm, _Passed(gain_N))


def _fold(module: nn.Module, *, back: bool = False) -> None:
    for projection, _, gain_N in _normed(module):
        power_N = _power(gain_N)
        for parameter in module.get_submodule(projection).parameters():
            parameter[: len(gain_N)] *= _column(1 / power_N if back else power_N, parameter)


def _power(gain_N: torch.Tensor) -> torch.Tensor:
    """Return most of what a linear norm multiplies with, as powers of two: there and back again no bit is lost."""
    power_N: torch.Tensor = torch.exp2((gain_N / EPS**0.5).log2().floor())
    return power_N


@torch.no_grad()
def with_norms(module: nn.Module, free: nn.Module) -> None:
    """Take over what a copy without norms has learned.

    Args:
        module: The host's module; changed in place.
        free: What `without_norms` made of it, trained.
    """
    for name, parameter in free.named_parameters():
        module.get_parameter(name).copy_(parameter)
    _fold(module, back=True)


def _normed(module: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield projections with the norms behind them, and the norms' gains."""
    for projection, norm in _NORMED:
        found: Any = getattr(module, norm, None)
        if found is not None:
            yield projection, norm, found.weight.detach().float()


def _column(factor_N: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return factor_N.view(-1, *[1] * (like.dim() - 1))


def values_of(module: nn.Module, shape: HostShape) -> torch.Tensor:
    """Return what makes values of the latent, `[H, F, C]`, as a view: it can be written."""
    weight = module.get_parameter("kv_b_proj.weight").detach()
    value_HFC: torch.Tensor = weight.unflatten(0, (shape.heads, -1))[:, shape.width :]
    return value_HFC
