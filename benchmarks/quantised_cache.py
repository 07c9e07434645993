"""What is left of keys and values in a cache of few bits, as engines keep them beside any form of attention.

Legend: B batch, H heads, T tokens, F width.
"""

from typing import Any

import torch
from transformers import DynamicCache

GROUP = 32
"""Numbers that share a scale, as in llama.cpp's blocks."""


def rounded(x_BHTF: torch.Tensor, bits: int) -> torch.Tensor:
    """Return each token's numbers as they come back from `bits` bits; `GROUP` neighbours share their extremes."""
    return torch.cat([_rounded(part, bits) for part in x_BHTF.split(GROUP, dim=-1)], dim=-1)


def _rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    least, largest = x.float().aminmax(dim=-1, keepdim=True)
    step = ((largest - least) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    near: torch.Tensor = ((x.float() - least) / step).round() * step + least
    return near.to(x.dtype)


class QuantisedCache(DynamicCache):
    """A cache whose keys and values are read as they come back from few bits."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self._bits = bits

    def update(self, *given: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values, and return them rounded."""
        keys, values = super().update(*given, **options)
        return rounded(keys, self._bits), rounded(values, self._bits)
