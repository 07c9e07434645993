"""How the KV heads of a group become one. NEW METHOD = ONE FILE + ONE LINE of `METHODS`.

Two kinds, both pure functions that see no file, family or layout:

    pooling       (heads_RN, generator) -> head_N: one quantity of one group at a time (key or value weights, a bias, a
                  norm's gain), so a checkpoint of any size streams by, and `verify` makes every head again
    layer method  (heads, groups, statistics) -> heads: a layer at a time; it may change queries and outputs together
                  with keys and values, and learn from what text tells of the layer's inputs

`METHODS` says of each which kind it is, whether text helps it, and how it is worded. Nothing else lists them: what a
conversion asks for (`demand`), the command line, the card and `verify` read it here. A function is imported when it is
used, so that the command line lists the names without torch.

`auto` is no method: it is a choice among ways, all of them by `aligned` (`verbs/convert/automatic.py`).

Legend: R heads of a group, N numbers of one head, K KV heads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from mha2gqa.errors import MethodError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mha2gqa.heads.attention import AttentionHeads, Statistics
    from mha2gqa.heads.grouping import Groups

Array: TypeAlias = "np.ndarray[Any, Any]"
Pooling: TypeAlias = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]
"""`(heads_RN, generator) -> head_N`: R heads of a group, N numbers of one quantity."""

LayerMethod: TypeAlias = Callable[["AttentionHeads", "Groups", "Statistics | None"], "AttentionHeads"]
"""`(heads, groups, statistics) -> heads` with one KV head per group, query heads in the order of the groups."""


@dataclass(frozen=True)
class Method:
    """One row: what is to be known of a method before it is used."""

    at: str
    """Where its function is, `module:function`."""
    words: str
    """What it does to the heads, as the beginning of a sentence."""
    streams: bool = True
    """It is a pooling; else a layer method."""
    reads_text: bool = False
    """It makes use of statistics of text, and does without where there are none; a pooling never sees any."""
    arrays: str = ""
    """Where the same function is for numpy arrays of a pooling that draws no numbers: `heads_RN -> head_N`, every bit
    as torch gives it for R up to 4, or N a multiple of 64. Spares a conversion torch."""

    def load(self) -> Any:
        """Return the function: a `Pooling` where the method streams, else a `LayerMethod`."""
        return _load(self.at)

    def load_arrays(self) -> "Callable[[Array], Array]":
        """Return the function for numpy arrays."""
        found: Callable[[Array], Array] = _load(self.arrays)
        return found


def _load(at: str) -> Any:
    module, _, function = at.partition(":")
    return getattr(import_module(module), function)


METHODS: dict[str, Method] = {
    "mean": Method(
        "mha2gqa.methods.mean:mean",
        "The heads of each group were averaged",
        arrays="mha2gqa.methods.mean:mean_of_arrays",
    ),
    "first": Method(
        "mha2gqa.methods.first:first",
        "Of each group the first head was kept",
        arrays="mha2gqa.methods.first:first_of_arrays",
    ),
    "random": Method("mha2gqa.methods.random:random", "Each group got a head drawn at random"),
    "aligned": Method(
        "mha2gqa.methods.aligned:aligned",
        "The heads of each group were aligned and merged",
        streams=False,
        reads_text=True,
    ),
}
"""Name -> method. A program may add its own."""

AUTO = "auto"
"""Stands in the place of a method for the cheapest of several ways that is good enough."""
AUTO_METHOD = "aligned"
"""What all of those ways merge by."""


def find_method(name: str) -> Method:
    """Return the row of a method; for `auto` that of the method that it merges by.

    Raises:
        MethodError: There is none of that name.
    """
    wanted = AUTO_METHOD if name == AUTO else name
    if wanted not in METHODS:
        raise MethodError(f"There is no method {name!r}", expected=f"one of {', '.join([*METHODS, AUTO])}")
    return METHODS[wanted]


@dataclass(frozen=True)
class Demand:
    """What a conversion asks for."""

    whole_layers: bool
    """Attention layers are changed as a whole; else each tensor is made by itself while its bytes stream by."""
    reads_text: bool
    """Text changes the result."""
    needs_text: bool
    """There is no result without text: the converted model is measured, or improved, on it."""


def demand(method: str, grouping: str, refine: str | None) -> Demand:
    """Return what a combination of `convert`'s options asks for.

    Args:
        method: A name in `METHODS`, or `auto`.
        grouping: `contiguous`, or another that compares the heads of a layer.
        refine: How far the result is improved on text, if it is.

    Raises:
        MethodError: There is no such method.
    """
    found = find_method(method)
    compares, needs_text = grouping != "contiguous", refine is not None or method == AUTO
    return Demand(
        whole_layers=needs_text or compares or not found.streams,
        reads_text=needs_text or compares or found.reads_text,
        needs_text=needs_text,
    )


def text_readers() -> list[str]:
    """Return the names of the methods that make use of text by themselves."""
    return [name for name, method in METHODS.items() if method.reads_text]


def streamed(name: str | None) -> Method:
    """Return the row of the pooling of that name, and of the mean where there is none.

    The mean stands in beside a layer method, for the layers that this cannot change (their projections cannot be
    told apart), and where nothing is merged at all.
    """
    method = METHODS.get(name or "")
    return method if method and method.streams else METHODS["mean"]


def layer_method(name: str, seed: int) -> LayerMethod:
    """Return a method as a function of a whole layer; a pooling too: heads may be sorted first, or refined afterwards.

    Args:
        name: Of the method.
        seed: Of poolings that draw numbers.

    Raises:
        MethodError: There is no such method.
    """
    method = find_method(name)
    found: LayerMethod = _of_layer(method.load(), seed) if method.streams else method.load()
    return found


def _of_layer(pool: Pooling, seed: int) -> LayerMethod:
    """Return the layer method that pools keys and values, and leaves queries and outputs as they are."""

    def merge(heads: "AttentionHeads", groups: "Groups", statistics: "Statistics | None" = None) -> "AttentionHeads":
        import torch

        generator = torch.Generator(heads.k_KEX.device).manual_seed(seed)
        order = torch.tensor(groups, device=heads.k_KEX.device)

        def pooled(heads_KN: torch.Tensor) -> torch.Tensor:
            merged = [pool(heads_KN[group].flatten(1), generator) for group in order]
            return torch.stack(merged).view(-1, *heads_KN.shape[1:])

        def sort(heads_H: torch.Tensor) -> torch.Tensor:
            sorted_H: torch.Tensor = heads_H.unflatten(0, (-1, heads.queries_per_head))[order].flatten(0, 2)
            return sorted_H

        return replace(
            heads,
            q_HEX=sort(heads.q_HEX),
            k_KEX=pooled(heads.k_KEX),
            v_KFX=pooled(heads.v_KFX),
            o_HDF=sort(heads.o_HDF),
            q_gain_HE=None if heads.q_gain_HE is None else sort(heads.q_gain_HE),
            k_gain_KE=None if heads.k_gain_KE is None else pooled(heads.k_gain_KE),
        )

    return merge
