"""Compares the tensors of a converted checkpoint with what they must be, byte by byte, on threads.

What a tensor must be is an `OutputTensor` of the plan, made of the original's bytes by the same `Pool` that
the writer uses, or, where only the record knows, a checksum. A few megabytes are in memory, whatever the
size of the checkpoint.

`head_similarity` says how alike the original's KV heads are that were merged. It explains a result and judges nothing:
heads that point in unrelated directions lose much of their length in a mean.

Legend: K KV heads of the original, N numbers of one run of rows of a head.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import xxhash

from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.merging import single_torch_thread
from mha2gqa.files.pieces import Copy, Merge, OutputTensor, Span, TensorInfo
from mha2gqa.files.pool import Pool
from mha2gqa.files.streams import Sources
from mha2gqa.record.pair import Pair
from mha2gqa.targets.plan import Plan, make_plan
from mha2gqa.verbs.verify.outcome import Similarity

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
    with contextlib.closing(Sources()) as sources, single_torch_thread():
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
    expected = _read(sources, Span(found.file, found.offset, found.size))
    for view in expected if tensor.made_of is None else views(tensor.made_of, sources, pool):
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


def views(tensor: OutputTensor, sources: Sources, pool: Pool) -> Iterator[memoryview]:
    """Yield the bytes that a tensor is made of, a few rows or a megabyte at a time."""
    for piece in tensor.pieces:
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


def head_similarity(pair: Pair) -> tuple[Similarity, ...]:
    """Return the cosine similarity between the KV heads of each attention module; nothing where none were merged.

    Reads the byte ranges of the heads that the plan of the conversion names, one tensor at a time.

    Args:
        pair: The original, and what was done to it.

    Raises:
        CheckpointError: The original is damaged.
    """
    if pair.conversion.method is None or not pair.conversion.change.is_any:
        return ()
    plan = make_plan(pair.original, pair.record.target)
    products: dict[str, torch.Tensor] = {}
    with contextlib.closing(Sources()) as sources:
        for module, merges in _runs(plan):
            heads_KN = torch.stack([_numbers(sources, span, merge.dtype) for merge in merges for span in merge.spans])
            products[module] = products.get(module, 0) + heads_KN @ heads_KN.T
    return tuple(
        Similarity(module=module, values=_cosines(products[module]), groups=pair.conversion.groups.get(module, groups))
        for module, groups in plan.groups.items()
        if module in products
    )


def _runs(plan: Plan) -> Iterator[tuple[str, list[Merge]]]:
    """Yield each attention module with the merges of one run of rows, whose spans are all its heads in order."""
    for tensor in plan.changed:
        module = next((name for name in plan.groups if tensor.name.startswith(f"{name}.")), None)
        by_head: dict[tuple[str, int], list[Merge]] = {}
        for piece in tensor.pieces:
            if isinstance(piece, Merge) and piece.fold is None:
                by_head.setdefault((piece.part, piece.group), []).append(piece)
        for part in dict.fromkeys(part for part, _ in by_head):
            for merges in zip(*(by_head[key] for key in sorted(by_head) if key[0] == part), strict=True):
                if module is not None:
                    yield module, list(merges)


def _numbers(sources: Sources, span: Span, dtype: str) -> torch.Tensor:
    content = bytearray(span.size)
    sources.read_into(span, memoryview(content))
    return torch.frombuffer(content, dtype=DTYPES[dtype]).double()


def _cosines(products_KK: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """Return the cosines of vectors by their inner products; 0 for a vector of zeros."""
    lengths_K = products_KK.diagonal().sqrt()
    cosines_KK = products_KK / (lengths_K[:, None] * lengths_K[None, :]).clamp_min(1e-300)
    return tuple(tuple(row) for row in cosines_KK.tolist())
