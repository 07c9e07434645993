"""Compares the tensors of a converted checkpoint with what they must be, byte by byte, on threads.

What a tensor must be is an `OutputTensor` of the plan, made of the original's bytes by the same `Pool` that
the writer uses, or, where only the record knows, a checksum. A few megabytes are in memory, whatever the
size of the checkpoint.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import xxhash

from mha2gqa.files.pieces import Copy, OutputTensor, Span, TensorInfo
from mha2gqa.files.pool import Pool
from mha2gqa.files.streams import Sources
from mha2gqa.files.threads import single_torch_thread

_THREADS = 3
"""As many as the writer has, for the same reason."""
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What one tensor of the converted checkpoint must be."""

    found: TensorInfo
    """The tensor in the converted checkpoint."""
    made_of: OutputTensor | None
    """Made of the original; None where nothing but a checksum is known."""


@dataclass(frozen=True)
class Compared:
    """How one tensor came out."""

    name: str
    checksum: str
    """Of the bytes in the converted checkpoint."""
    expected: str
    """Of the bytes that should be there; the same as `checksum` where nothing was compared."""
    first: int | None
    """Offset in the tensor of the first byte that differs; None when all are equal."""


def compare(tensors: Sequence[Expected], pool: Pool, tell: Callable[[int], object]) -> list[Compared]:
    """Compare every tensor, and return the results in the same order.

    Args:
        tensors: What to compare.
        pool: Makes the changed tensors again.
        tell: Told of every run of bytes compared.

    Raises:
        CheckpointError: A file of either checkpoint ends early, or the original holds NaN or infinity in K or V.
    """
    with contextlib.ExitStack() as stack:
        sources = Sources()
        stack.callback(sources.close)
        stack.enter_context(single_torch_thread())
        executor = ThreadPoolExecutor(_THREADS)
        try:
            return list(executor.map(lambda tensor: _compare(tensor, sources, pool, tell), tensors))
        finally:
            executor.shutdown(cancel_futures=True)


def _compare(tensor: Expected, sources: Sources, pool: Pool, tell: Callable[[int], object]) -> Compared:
    found = tensor.found
    seen, wanted = xxhash.xxh3_128(), xxhash.xxh3_128()
    first: int | None = None
    done = 0
    buffer = memoryview(bytearray(_BUFFER))
    for view in _views(tensor, sources, pool):
        for start in range(0, len(view), _BUFFER):
            part = view[start : start + _BUFFER]
            own = buffer[: len(part)]
            sources.read_into(Span(found.file, found.offset + done, len(part)), own)
            seen.update(own)
            wanted.update(part)
            if first is None and (place := _first_difference(own, part)) is not None:
                first = done + place
            done += len(part)
            tell(len(part))
    return Compared(found.name, seen.hexdigest(), wanted.hexdigest(), first)


def _views(tensor: Expected, sources: Sources, pool: Pool) -> Iterator[memoryview]:
    """Yield the bytes that should be there; without any knowledge of them, those that are."""
    if tensor.made_of is None:
        yield from _read(sources, Span(tensor.found.file, tensor.found.offset, tensor.found.size))
        return
    for piece in tensor.made_of.pieces:
        yield from _read(sources, piece.span) if isinstance(piece, Copy) else pool.slices(sources, piece)


def _read(sources: Sources, span: Span) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_BUFFER, span.size)))
    for start in range(0, span.size, _BUFFER):
        view = buffer[: min(_BUFFER, span.size - start)]
        sources.read_into(Span(span.file, span.offset + start, len(view)), view)
        yield view


def _first_difference(one: memoryview, other: memoryview) -> int | None:
    first, second = (torch.frombuffer(view, dtype=torch.uint8) for view in (one, other))
    return None if torch.equal(first, second) else int((first != second).nonzero()[0])
