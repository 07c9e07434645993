"""The heads of one attention layer, free of any family's way to store them.

`families` makes an `AttentionHeads` of a layer's tensors and tensors of it again; a method turns one into
another with fewer KV heads. What may be changed without changing what the layer computes (its freedom) is
said by name (`freedom.py`), and decided in `families/table.py`.

Legend: H query heads, K KV heads, R = H/K query heads per KV head, E width of a key head, F width of a value
head, X inputs (the model's width, and one more that is always 1 where there are biases), D outputs,
P rotary planes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mha2gqa.heads.freedom import Freedom, Pairing
from mha2gqa.heads.metric import Even, Metric


@dataclass(frozen=True)
class Rotary:
    """How a head's rows are rotated by position."""

    width: int
    """Rows that are rotated, from the head's first on; the others are not. 0 without rotary embedding."""
    pairing: Pairing = "half"
    frequencies: tuple[float, ...] = ()
    """Angle by which each plane turns from one position to the next, in radians; empty where it is not known."""
    both_ways: bool = False
    """Whether tokens attend to later ones, too."""

    def planes(self) -> torch.Tensor:
        """Return the rows of each plane, int64 `[P, 2]`."""
        rows = torch.arange(self.width)
        return rows.view(2, -1).T if self.pairing == "half" else rows.view(-1, 2)

    def rest(self, width: int) -> torch.Tensor:
        """Return the rows of a head of `width` rows that are not rotated, as planes of one row, int64 `[U, 1]`."""
        return torch.arange(self.width, width)[:, None]


@dataclass(frozen=True, kw_only=True)
class AttentionHeads:
    """Weights of all heads of a layer, in the dtype of computation: fp32 for 16-bit weights, else fp64."""

    q_HEX: torch.Tensor
    k_KEX: torch.Tensor
    v_KFX: torch.Tensor
    o_HDF: torch.Tensor
    rotary: Rotary
    keys: Freedom
    values: Freedom
    q_gain_HE: torch.Tensor | None = None
    """Gains of a norm over the queries of all heads at once (`scaled` keys)."""
    k_gain_KE: torch.Tensor | None = None
    """Gains of a norm over the keys of all heads at once (`scaled` keys)."""

    @property
    def queries_per_head(self) -> int:
        """R: query heads that share one KV head."""
        return len(self.q_HEX) // len(self.k_KEX)

    def members(self, group: Sequence[int]) -> "AttentionHeads":
        """Return some KV heads, in this order, with the query heads that read them; views where they are neighbours."""
        first, last = group[0], group[-1]
        neighbours = list(group) == list(range(first, last + 1))
        heads = slice(first, last + 1) if neighbours else list(group)

        def of_queries(tensor_H: torch.Tensor) -> torch.Tensor:
            members_H: torch.Tensor = tensor_H.unflatten(0, (-1, self.queries_per_head))[heads].flatten(0, 1)
            return members_H

        return replace(
            self,
            q_HEX=of_queries(self.q_HEX),
            k_KEX=self.k_KEX[heads],
            v_KFX=self.v_KFX[heads],
            o_HDF=of_queries(self.o_HDF),
            q_gain_HE=None if self.q_gain_HE is None else of_queries(self.q_gain_HE),
            k_gain_KE=None if self.k_gain_KE is None else self.k_gain_KE[heads],
        )


def join(parts: Iterable[AttentionHeads], count: int) -> AttentionHeads:
    """Return the heads of `count` parts of one shape as one layer; what is no tensor is as in the first.

    Each part is copied to its place before the next is asked for: no two need be held.
    """
    joined: dict[str, Any] = {}
    first: AttentionHeads | None = None
    for place, part in enumerate(parts):
        first = first or part
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                whole = joined.setdefault(name, value.new_empty(count, *value.shape))
                whole[place] = value
    if first is None:
        raise ValueError("no parts to join")
    return replace(first, **{name: whole.flatten(0, 1) for name, whole in joined.items()})


@dataclass(frozen=True)
class Statistics:
    """What a method may know of the inputs of a layer: sums over tokens, never the tokens."""

    inputs: Metric
    """Of x, as the rows of keys and values take it."""
    query_inputs: Metric
    """The same for the queries; another one in cross-attention only."""
    read: Metric | None = None
    """Of what heads make of x by their attention, which values are multiplied with; None where it is not known."""
    together_HH: torch.Tensor | None = None
    """Correlation of what two query heads read; None where it is not known."""

    def like(self, tensor: torch.Tensor) -> "Statistics":
        """Return the statistics in a tensor's dtype and on its device."""
        inputs = self.inputs.like(tensor)
        query_inputs = inputs if self.query_inputs is self.inputs else self.query_inputs.like(tensor)
        read = None if self.read is None else self.read.like(tensor)
        return Statistics(inputs, query_inputs, read, None if self.together_HH is None else self.together_HH.to(tensor))

    @property
    def of_values(self) -> Metric:
        """What is known best of what values are multiplied with."""
        return self.read or self.inputs

    def members(self, group: Sequence[int], queries_per_head: int) -> "Statistics":
        """Return what is known of some KV heads, as `AttentionHeads.members` does."""
        if self.together_HH is None:
            return self
        heads = torch.tensor(group, device=self.together_HH.device)
        heads_H = (heads[:, None] * queries_per_head + torch.arange(queries_per_head, device=heads.device)).flatten()
        return replace(self, together_HH=self.together_HH[heads_H[:, None], heads_H])


NOTHING_KNOWN = Statistics(Even(), Even())
"""Inputs that count as uncorrelated and of equal size."""
