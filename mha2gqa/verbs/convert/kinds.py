"""The tensors of a plan, one line for those that differ in nothing but the number of their layer.

    model.layers.{0-29}.self_attn.k_proj.weight    30    changed    BF16    [192, 576]    [64, 576]

A model has hundreds of tensors, and a person wants to see of which kinds they are. Each of them is in the report that
programs read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from mha2gqa.targets.window import write_layers

_Numbers: TypeAlias = tuple[int, ...]
_Words: TypeAlias = tuple[str | None, ...]
"""Parts of a name; None stands for a number."""


class Kind(NamedTuple):
    """Tensors of which one name stands for all."""

    name: str
    """As `model.layers.{0-3,7}.self_attn.k_proj.weight`; of one tensor its own."""
    number: int
    tensor: Mapping[str, Any]
    """One of them: its action, dtype and shapes are those of all."""


def kinds_of(tensors: Sequence[Mapping[str, Any]]) -> Iterator[Kind]:
    """Yield the kinds of some tensors in the order of their first ones.

    Args:
        tensors: As an `Outcome` lists them: name, action, dtype, shape before and after.
    """
    alike: dict[tuple[Any, ...], list[tuple[_Numbers, Mapping[str, Any]]]] = {}
    for tensor in tensors:
        words, numbers = _divided(tensor["name"])
        facts = (tensor[key] and str(tensor[key]) for key in ("action", "dtype", "before", "after"))
        alike.setdefault((words, *facts), []).append((numbers, tensor))
    for (words, *_), found in alike.items():
        for spans in _spans([numbers for numbers, _ in found]):
            yield Kind(_named(words, spans), math.prod(map(len, spans)), found[0][1])


def _divided(name: str) -> tuple[_Words, _Numbers]:
    """Return the parts of a name, without its whole numbers; and those numbers."""
    parts = name.split(".")
    is_number = [part.isdecimal() and str(int(part)) == part for part in parts]
    words = tuple(None if found else part for part, found in zip(parts, is_number, strict=True))
    return words, tuple(int(part) for part, found in zip(parts, is_number, strict=True) if found)


def _spans(numbers: Sequence[_Numbers]) -> list[tuple[_Numbers, ...]]:
    """Return products of numbers that together are all of some rows of them: of layers, of experts in them."""
    if not numbers[0]:
        return [()]
    rests: dict[int, list[_Numbers]] = {}
    for first, *rest in numbers:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[_Numbers, ...], ...], list[int]] = {}
    for first, found in rests.items():
        alike.setdefault(tuple(_spans(found)), []).append(first)
    return [(tuple(sorted(firsts)), *spans) for rest, firsts in alike.items() for spans in rest]


def _named(words: _Words, spans: Sequence[_Numbers]) -> str:
    texts = (f"{{{write_layers(one)}}}" if len(one) > 1 else str(one[0]) for one in spans)
    return ".".join(next(texts) if word is None else word for word in words)
