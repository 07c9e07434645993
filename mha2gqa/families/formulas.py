"""How `outlines.json` says numbers and names: sums of products of sizes, and names with loops.

2*intermediate_size                             a number
layers.{num_hidden_layers}.norm.weight          the names of all layers
block.{num_layers:0:1}.relative_bias.weight     those of some: from the first number to the second, which is left out
~.layers.{num_hidden_layers}.norm.weight        behind the prefix of the base model, where there is a model around it
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

BASE = "~."
"""Stands for the prefix of the base model."""
_Named = tuple[tuple[str, ...], Any]


def evaluate(expression: str, sizes: Mapping[str, Any]) -> int:
    """Return the number of a sum of products of sizes: `2*intermediate_size`."""
    return sum(
        math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in term.split("*"))
        for term in expression.split("+")
    )


def quotient(expression: str, sizes: Mapping[str, Any]) -> int | None:
    """Return the number of `hidden_size//num_attention_heads`, too; None where a size is none."""
    names = [name for name in re.split(r"[*+/]+", expression) if not name.isdigit()]
    if not all(type(sizes.get(name)) is int and sizes[name] > 0 for name in names):
        return None
    whole, _, part = expression.partition("//")
    return evaluate(whole, sizes) // (evaluate(part, sizes) if part else 1)


def expand(tensors: Iterable[tuple[str, Any]], sizes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names of tensors, those of a layer together, in the order of the module tree.

    Args:
        tensors: Names with loops, and whatever belongs to them.
        sizes: What is counted.
    """
    return _loop([(tuple(re.split("[{}]", name)), one) for name, one in tensors], sizes, "")


def _loop(named: list[_Named], sizes: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for loop, group in groupby(named, lambda one: _head(one[0])):
        if not loop:
            yield from ((before + parts[0], one) for parts, one in group)
            continue
        text, count = loop
        inner = [(_some(parts[1], sizes), (parts[2:], one)) for parts, one in group]
        for number in range(evaluate(count, sizes)):
            there = [one for some, one in inner if some is None or number in some]
            yield from _loop(there, sizes, f"{before}{text}{number}")


def _head(parts: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the text before a loop, and what it counts; None for a name without one."""
    return (parts[0], parts[1].partition(":")[0]) if len(parts) > 1 else None


def _some(loop: str, sizes: Mapping[str, Any]) -> range | None:
    """Return the numbers of a loop that a tensor has; None for all."""
    count, *ends = loop.split(":")
    return range(*(evaluate(end or count, sizes) for end in ends)) if ends else None
