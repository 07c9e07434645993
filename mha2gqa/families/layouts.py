"""How the heads of Q, K and V lie in one tensor of a file: the order of its rows.

A layout answers one question: which rows of axis 0 belong to which head. Everything else follows
from it: `targets/pieces.py` walks the rows of the target layout in file order and finds, for each run of
rows, the source heads that it is made of. Convert (many source heads to one), expand (one to many) and a
change of layout (falcon's `[H, 3, E]` to `[q; k; v]`) are that same walk.

No tensors here, only numbers of rows.

Legend: H query heads, K KV heads, R = H/K, E width of one head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Part: TypeAlias = Literal["q", "k", "v", "kv"]
"""Whose rows: a query head's, a KV head's key or value, or any other quantity kept per KV head."""


@dataclass(frozen=True)
class HeadRows:
    """A run of `count` rows that belongs to head number `head` of a part."""

    part: Part
    head: int
    count: int


@dataclass(frozen=True)
class Geometry:
    """What a layout must know of the attention to cut a tensor of `rows` rows into heads."""

    query_heads: int
    kv_heads: int
    head_width: int | None = None
    """Width of one KV head where it cannot be derived from the number of KV heads."""


Layout: TypeAlias = Callable[[int, Geometry], list[HeadRows]]
"""`(rows, geometry) -> runs in file order`; the runs' counts sum to `rows`, or ValueError."""


def separate(rows: int, geometry: Geometry) -> list[HeadRows]:
    """One tensor for K or for V: `[K·E, ...]`, also any vector or matrix kept per KV head."""
    width = geometry.head_width or _divide(rows, geometry.kv_heads)
    return [HeadRows("kv", head, width) for head in range(_divide(rows, width))]


def fused(rows: int, geometry: Geometry) -> list[HeadRows]:
    """Blocks `[q; k; v]`: `[(H + 2K)·E, ...]`, as in phi3, dbrx and the multi-query falcon."""
    queries, heads = geometry.query_heads, geometry.kv_heads
    width = _divide(rows, queries + 2 * heads)
    blocks: list[tuple[Part, int]] = [("q", queries), ("k", heads), ("v", heads)]
    return [HeadRows(part, head, width) for part, count in blocks for head in range(count)]


def interleaved(rows: int, geometry: Geometry) -> list[HeadRows]:
    """Each KV head behind its own query heads: `[K, (q * R, k, v), E, ...]`, as in the MHA falcon."""
    queries, heads = geometry.query_heads, geometry.kv_heads
    width, shared = _divide(rows, queries + 2 * heads), _divide(queries, heads)
    runs: list[HeadRows] = []
    for head in range(heads):
        runs += [HeadRows("q", head * shared + query, width) for query in range(shared)]
        runs += [HeadRows("k", head, width), HeadRows("v", head, width)]
    return runs


def _divide(whole: int, part: int) -> int:
    if whole % part:
        raise ValueError(f"{whole} rows cannot be divided into {part} equal parts")
    return whole // part
