"""Makes one head of the heads of a group: reads their bytes, merges, rounds; a few rows at a time.

For methods that stream, and for `verify`, which makes the same heads again. Which heads belong together was planned
before (`targets/pieces.py`), how they become one is a pooling of `methods`; whole layers are `refine/merge.py`'s.

Poolings compute with torch (`merging.py`). Those that have a twin for numpy arrays, the same to the bit, do it with
that wherever it can be, so that most conversions never load torch.

Legend: R heads of a group, N numbers of one head.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from mha2gqa.files.pieces import ITEMSIZES, Merge, Span
from mha2gqa.files.streams import Sources
from mha2gqa.methods import Array, Method

_SLICE = 1 << 18
"""Numbers of the heads of a group that are in memory at a time, per thread; larger ones fragment the heap."""
_LANES = 64
"""Beyond a multiple of it, torch adds what is left of a row in another order; four numbers it adds in order always."""


@dataclass(frozen=True)
class Pool:
    """Makes one head of the heads of a group, in the dtype of accumulation."""

    method: Method
    """One that streams (`methods.streamed`)."""
    seed: int

    def slices(self, sources: Sources, piece: Merge) -> Iterator[memoryview]:
        """Yield the bytes of the merged head, a few rows at a time."""
        row = piece.columns * ITEMSIZES[piece.dtype]
        merge = self._by_torch(piece) if self._needs_torch(piece) else self._by_numpy(piece)
        for start, count in _runs(piece):
            raw = bytearray(len(piece.spans) * count * row)
            heads = memoryview(raw)
            for number, span in enumerate(piece.spans):
                part = heads[number * count * row : (number + 1) * count * row]
                sources.read_into(Span(span.file, span.offset + start * row, count * row), part)
            yield merge(raw)

    def prepared(self, pieces: Iterable[Merge]) -> contextlib.AbstractContextManager[None]:
        """Return what has to be held while such pieces are made on threads."""
        if not any(map(self._needs_torch, pieces)):
            return contextlib.nullcontext()
        from mha2gqa.files.merging import single_torch_thread

        return single_torch_thread()

    def _needs_torch(self, piece: Merge) -> bool:
        is_ordered = len(piece.spans) <= 4 or all(count * piece.columns % _LANES == 0 for _, count in _runs(piece))
        return self.method.arrays == "" or piece.fold is not None or not is_ordered

    def _by_torch(self, piece: Merge) -> Callable[[bytearray], memoryview]:
        from mha2gqa.files.merging import merging

        seed = xxhash.xxh64_intdigest(f"{self.seed}/{piece.tensor}/{piece.part}/{piece.group}".encode()) >> 1
        return merging(piece, self.method.load(), seed)

    def _by_numpy(self, piece: Merge) -> Callable[[bytearray], memoryview]:
        method = self.method.load_arrays()

        def merge(raw: bytearray) -> memoryview:
            with np.errstate(over="ignore", invalid="ignore"):
                heads_RN = _wide(raw, piece.dtype).reshape(len(piece.spans), -1)
                # The sum is the cheap test; numbers whose sum overflows get the exact one.
                if not np.isfinite(heads_RN.sum()) and not np.isfinite(heads_RN).all():
                    raise piece.not_finite()
                return _narrow(method(heads_RN) if len(heads_RN) > 1 else heads_RN[0], piece.dtype)

        return merge


def _runs(piece: Merge) -> Iterator[tuple[int, int]]:
    """Yield the first of the rows that are made together, and how many they are."""
    rows = piece.spans[0].size // (piece.columns * ITEMSIZES[piece.dtype])
    step = max(1, _SLICE // (piece.columns * len(piece.spans)))
    return ((start, min(step, rows - start)) for start in range(0, rows, step))


def _wide(raw: bytearray, dtype: str) -> Array:
    """Return numbers in fp32 for 16-bit tensors and in fp64 for others."""
    if dtype == "BF16":  # the upper half of an fp32
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind, wide = {"F16": ("f2", "f4"), "F32": ("f4", "f8"), "F64": ("f8", "f8")}[dtype]
    return np.frombuffer(raw, kind).astype(wide)


def _narrow(head_N: Array, dtype: str) -> memoryview:
    """Return the bytes of numbers in the dtype of the file, rounded to the nearest, halves to the even one."""
    if dtype == "BF16":
        bits = head_N.view(np.uint32)
        rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
        rounded[np.isnan(head_N)] = 0x7FC0
        return rounded.view(np.uint8).data
    return np.ascontiguousarray(head_N.astype({"F16": "f2", "F32": "f4", "F64": "f8"}[dtype])).view(np.uint8).data
