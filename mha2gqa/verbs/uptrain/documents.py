"""Training text as documents: shuffled through a buffer, and a part of it kept aside for measuring.

A document goes to the held-out part by a checksum of its text, so that copies of it are kept from training as well,
in any order and on any machine. Text of too few documents is cut into pieces at line ends first. No tokens here.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

import xxhash

Document = TypeVar("Document", bound=Sized)

_BUFFER = 64 << 20
"""Characters that are shuffled among one another."""
_HELD_OUT = 20
"""One document in so many is kept aside."""
_FEW = 100
"""Documents below which text is cut up."""


def shuffled(documents: Iterable[Document], seed: int, characters: Callable[[Any], int] = len) -> Iterator[Document]:
    """Yield documents in an order that depends on the seed alone; a bounded number of them is in memory.

    Args:
        documents: Texts, or what else `characters` gives the size of.
        seed: Of the order.
        characters: Size of one.
    """
    generator = random.Random(seed)  # noqa: S311 (no secret)
    buffer: list[Document] = []
    size = 0
    for document in documents:
        buffer.append(document)
        size += characters(document)
        while size > _BUFFER and len(buffer) > 1:
            chosen = generator.randrange(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            size -= characters(buffer[-1])
            yield buffer.pop()
    generator.shuffle(buffer)
    yield from buffer


def cut_if_few(documents: Iterable[str]) -> Iterator[str]:
    """Yield documents; where there are few, pieces of them, cut at line ends (or anywhere, in one huge line)."""
    stream = iter(documents)
    first = list(itertools.islice(stream, _FEW))
    if len(first) == _FEW:
        yield from itertools.chain(first, stream)
        return
    size = max(1, sum(map(len, first)) // _FEW)
    for document in first:
        yield from _pieces(document, size)


def _pieces(document: str, size: int) -> Iterator[str]:
    start = 0
    while start < len(document):
        end = start + size
        line_end = document.find("\n", end, end + size)
        end = line_end + 1 if line_end >= 0 else end
        yield document[start:end]
        start = end


def key_of(document: str) -> int:
    """Return what a document and its copies have in common."""
    return xxhash.xxh3_64_intdigest(document.encode("utf-8", "surrogatepass"))


def is_held_out(key: int) -> bool:
    """Return whether documents of this key are kept aside."""
    return key % _HELD_OUT == 0
