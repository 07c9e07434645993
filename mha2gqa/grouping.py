"""Which KV heads share a group.

A grouping is a tuple of groups, each a tuple of source head numbers; target head g stands for
`groups[g]`. The same shape describes the opposite direction: `repeated` gives, for each head of the
expanded model, the one source head that it repeats.
"""

from typing import TypeAlias

Groups: TypeAlias = tuple[tuple[int, ...], ...]


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
