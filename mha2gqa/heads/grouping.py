"""Which KV heads share a group.

A grouping is a tuple of groups, each a tuple of source head numbers; target head g stands for
`groups[g]`. The same shape describes the opposite direction: `repeated` gives, for each head of the
expanded model, the one source head that it repeats.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

Groups: TypeAlias = tuple[tuple[int, ...], ...]

_STARTS = 8
"""Random starts of the search for groups of more than two."""
_NOTHING = 1e-12
"""Gains below this are rounding."""


def contiguous(heads: int, groups: int) -> Groups:
    """Return neighbouring heads as groups: `contiguous(4, 2) == ((0, 1), (2, 3))`.

    This is the order in which transformers shares KV heads (`repeat_kv`), so query heads stay put.
    `groups` must divide `heads`.
    """
    size = heads // groups
    return tuple(tuple(range(group * size, (group + 1) * size)) for group in range(groups))


def repeated(heads: int, copies: int) -> Groups:
    """Return `copies` heads, each made of one of `heads`: `repeated(2, 4) == ((0,), (0,), (1,), (1,))`."""
    return tuple((copy * heads // copies,) for copy in range(copies))


def sharing(source: int, target: int) -> Groups:
    """Return which of `source` heads each of `target` heads is made of, in either direction."""
    return contiguous(source, target) if target <= source else repeated(source, target)


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number in ascending order."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def similar(heads: int, groups: int, loss: Callable[[Sequence[int]], float], seed: int = 0) -> Groups:
    """Return the groups of equal size whose merge loses the least.

    Pairs are matched exactly (Edmonds' algorithm). Larger groups are sought by swaps between groups, from
    contiguous and from random starts, on the sum of the losses of their pairs, and the result is taken only
    where the true loss is below that of contiguous groups.

    Args:
        heads: KV heads of the layer.
        groups: Their number after the merge; divides `heads`.
        loss: What the merge of some heads loses.
        seed: Of the random starts.
    """
    plain = contiguous(heads, groups)
    if groups in (1, heads):
        return plain
    pairs = _pairs(heads, loss)
    found = _matched(pairs) if heads == 2 * groups else _swapped(pairs, groups, seed)
    return found if sum(map(loss, found)) < sum(map(loss, plain)) else plain


def _pairs(heads: int, loss: Callable[[Sequence[int]], float]) -> list[list[float]]:
    """Return what each pair loses, whichever comes first: a loss of a merge knows no order."""
    losses = {pair: loss(pair) for pair in itertools.combinations(range(heads), 2)}
    return [[losses.get((min(one, other), max(one, other)), 0.0) for other in range(heads)] for one in range(heads)]


def _matched(pairs: list[list[float]]) -> Groups:
    from networkx import Graph, min_weight_matching

    # A partition into pairs is a perfect matching of all heads, and the least one is found in polynomial time.
    graph = Graph()
    for one, other in itertools.combinations(range(len(pairs)), 2):
        graph.add_edge(one, other, weight=pairs[one][other])
    return tuple(sorted(tuple(sorted(edge)) for edge in min_weight_matching(graph)))


def _swapped(pairs: list[list[float]], groups: int, seed: int) -> Groups:
    # Larger groups have no such algorithm. A sum over pairs stands for a group's loss, which it takes a merge to know.
    heads, generator = len(pairs), random.Random(seed)  # noqa: S311 (no secret)
    starts = [list(range(heads)), *(generator.sample(range(heads), heads) for _ in range(_STARTS))]
    best = min((_descend(start, pairs, heads // groups) for start in starts), key=lambda found: found[0])[1]
    return tuple(sorted(tuple(sorted(best[at : at + heads // groups])) for at in range(0, heads, heads // groups)))


def _descend(order: list[int], pairs: list[list[float]], size: int) -> tuple[float, list[int]]:
    """Swap heads between groups (runs of `size` in `order`) as long as that lowers the sum over pairs."""

    def bond(head: int, group: int, without: int) -> float:
        members = order[group * size : (group + 1) * size]
        return sum(pairs[head][member] for member in members if member not in (head, without))

    improved = True
    while improved:
        improved = False
        for one, other in itertools.combinations(range(len(order)), 2):
            group, another = one // size, other // size
            if group == another:
                continue
            first, second = order[one], order[other]
            now = bond(first, group, -1) + bond(second, another, -1)
            then = bond(first, another, second) + bond(second, group, first)
            if then < now - _NOTHING:
                order[one], order[other] = second, first
                improved = True
    return sum(bond(head, at // size, -1) for at, head in enumerate(order)), order
