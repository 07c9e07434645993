"""Makes one head of the heads of a group: reads their bytes, merges, rounds; a few rows at a time.

For methods that stream, and for `verify`, which makes the same heads again. Which heads belong together was planned
before (`targets/pieces.py`), how they become one is a pooling of `methods`; whole layers are `refine/merge.py`'s.

Legend: R heads of a group, N numbers of one head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import xxhash

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import DTYPES, Fold, Merge, Span
from mha2gqa.files.streams import Sources
from mha2gqa.methods import Pooling

_SLICE = 1 << 18
"""Numbers of the heads of a group that are in memory at a time, per thread; larger ones fragment the heap."""


@dataclass(frozen=True)
class Pool:
    """Makes one head of the heads of a group, in the dtype of accumulation."""

    method: Pooling
    seed: int

    def slices(self, sources: Sources, piece: Merge) -> Iterator[memoryview]:
        """Yield the bytes of the merged head, a few rows at a time."""
        dtype = DTYPES[piece.dtype]
        row = piece.columns * dtype.itemsize
        rows = piece.spans[0].size // row
        generator = torch.Generator().manual_seed(self._seed(piece))
        step = max(1, _SLICE // (piece.columns * len(piece.spans)))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            raw = torch.empty(len(piece.spans), count * piece.columns, dtype=dtype)
            for head, span in zip(raw, piece.spans, strict=True):
                sources.read_into(Span(span.file, span.offset + start * row, count * row), _bytes(head))
            yield _bytes(self._merge(raw, piece, generator).to(dtype))

    def _merge(self, raw_RN: torch.Tensor, piece: Merge, generator: torch.Generator) -> torch.Tensor:
        heads_RN = raw_RN.to(torch.float32 if raw_RN.dtype.itemsize == 2 else torch.float64)
        # The sum is the cheap test; numbers whose sum overflows get the exact one.
        if not torch.isfinite(heads_RN.sum()) and not torch.isfinite(heads_RN).all():
            raise CheckpointError(
                f"Tensor {piece.tensor!r} holds NaN or infinity",
                expected="finite numbers in K and V",
                remedy="The checkpoint is broken there: take an earlier one of the training run",
            )
        if piece.fold:
            heads_RN = _fold(heads_RN, piece.fold, piece.columns)
        return self.method(heads_RN, generator) if len(heads_RN) > 1 else heads_RN[0]

    def _seed(self, piece: Merge) -> int:
        return xxhash.xxh64_intdigest(f"{self.seed}/{piece.tensor}/{piece.part}/{piece.group}".encode()) >> 1


def _fold(heads_RN: torch.Tensor, fold: Fold, columns: int) -> torch.Tensor:
    """Sum columns over the KV heads of each group; to expand, give all to the first of the copies."""
    width, shared = columns // fold.source, max(1, fold.source // fold.target)
    if fold.target <= fold.source:
        return heads_RN.reshape(len(heads_RN), -1, fold.target, shared, width).sum(dim=3).flatten(1)
    spread = heads_RN.reshape(len(heads_RN), -1, fold.source, 1, width)
    zeros = spread.new_zeros(*spread.shape[:3], fold.target // fold.source - 1, width)
    return torch.cat([spread, zeros], dim=3).flatten(1)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data
