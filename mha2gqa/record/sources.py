"""Checksums of an original's tensors: what a result was made of, whatever was done to it since.

The record keeps one of every tensor of the original's files, under the names that they have there. A tensor that a
conversion copies has been summed by the writer already; the others (keys and values, or the layers that a method
changed) are read once more, a megabyte at a time on a few threads, which costs what reading them from the page cache
costs: XXH3 sums faster than any disk reads.
"""

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import xxhash

from mha2gqa.files.pieces import Copy, File, OutputTensor, Span, TensorInfo
from mha2gqa.files.streams import Sources

_THREADS = 3
"""As many as the writer has."""
_BUFFER = 1 << 20
_Place: TypeAlias = tuple[Path | int, int, int]


def source_checksums(
    infos: Iterable[TensorInfo], copies: Iterable[OutputTensor], known: Mapping[str, str]
) -> dict[str, str]:
    """Return the checksum of every tensor of an original.

    Args:
        infos: The tensors, as they lie in its files.
        copies: Tensors of a result; those that are copied whole need not be read again.
        known: Name of such a tensor in the result -> XXH3-128 of the bytes that were copied, in hexadecimal.

    Raises:
        CheckpointError: A file ends early, or cannot be read.
    """
    read: dict[_Place, str] = {}
    for one in copies:
        (first, *_) = one.pieces
        if one.is_copy and isinstance(first, Copy) and one.name in known:
            read[_place(first.span)] = known[one.name]
    infos = list(infos)
    places = {info.name: _place(Span(info.file, info.offset, info.size)) for info in infos}
    rest = [info for info in infos if places[info.name] not in read]
    with contextlib.closing(Sources()) as sources, ThreadPoolExecutor(_THREADS) as executor:
        sums = dict(
            zip((info.name for info in rest), executor.map(lambda one: checksum(sources, one), rest), strict=True)
        )
    return {name: sums[name] if name in sums else read[place] for name, place in places.items()}


def _place(span: Span) -> _Place:
    return _key(span.file), span.offset, span.size


def _key(file: File) -> Path | int:
    return file if isinstance(file, Path) else id(file)  # the bytes of one that stands in for another are its own


def checksum(sources: Sources, info: TensorInfo) -> str:
    """Return the XXH3-128 checksum of a tensor's bytes, in hexadecimal.

    Raises:
        CheckpointError: Its file ends early, or cannot be read.
    """
    found, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_BUFFER, info.size)))
    for start in range(0, info.size, _BUFFER):
        view = buffer[: min(_BUFFER, info.size - start)]
        sources.read_into(Span(info.file, info.offset + start, len(view)), view)
        found.update(view)
    return found.hexdigest()
