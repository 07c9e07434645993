"""What latent attention is made of: a layer's heads over what is cached, and how the shared rotary key turns.

For each token a layer caches S = [shared rotary key; latent], linear in its input x. Query head h meets them with
lifts of its query, and makes its values of the latent:

    score(t, t') = (L_h q)·(R_{t-t'} r(x')) + (U_h q)·c(x'),    value = B_h c(x')

The lifts of the part that is not rotated are what DeepSeek calls W_UK (transposed), B is W_UV.

Legend: H query heads, E width of a query, F width of a value head, X inputs, D outputs, C width of the latent,
R rows of the shared rotary key.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RotaryKey:
    """How the planes of the shared rotary key turn; the same for all layers of a model."""

    speeds: tuple[float, ...]
    """Of each plane, in radians a token; planes of one speed are further keys of it."""
    begins: tuple[tuple[int, int], ...]
    """What a fit begins each plane from: a plane of the source, and the rank among its shared rows, 0 the leading."""
    parameters: dict[str, Any]
    """`rope_parameters` of the host that give these speeds."""
    name: str
    """What a report calls it, and what makes it again (`rope.named_key`)."""

    @property
    def kind(self) -> str:
        """The name, in which free planes are not listed."""
        return "free" if self.is_free else self.name

    @property
    def is_free(self) -> bool:
        """Whether it has speeds that transformers alone knows."""
        return bool(self.parameters["rope_type"] == "longrope")

    @property
    def width(self) -> int:
        """R: two numbers a plane."""
        return 2 * len(self.speeds)


@dataclass(frozen=True, kw_only=True)
class LatentHeads:
    """One layer. With biases, the last of the inputs X is the constant 1."""

    q_HEX: torch.Tensor
    """The source's own queries."""
    o_HDF: torch.Tensor
    """The source's own output projections."""
    turning_RX: torch.Tensor
    """Rows of the shared rotary key: the first rows of all planes, then the second."""
    latent_CX: torch.Tensor
    turning_lift_HRE: torch.Tensor
    """Takes a query to what meets the rotary key."""
    latent_lift_HCE: torch.Tensor
    """Takes a query to what meets the latent."""
    value_HFC: torch.Tensor
    """Makes a head's values of the latent."""

    @property
    def numbers(self) -> int:
        """C + R: what a token adds to the cache of the layer."""
        return len(self.turning_RX) + len(self.latent_CX)
