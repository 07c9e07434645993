"""Merges the heads of a group with torch: what `pool.py` does not do with numpy.

Legend: R heads of a group, N numbers of one head.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch

from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.pieces import Fold, Merge
from mha2gqa.methods import Pooling


def merging(piece: Merge, method: Pooling, seed: int) -> Callable[[bytearray], memoryview]:
    """Return what makes one head, as bytes, of the bytes of the heads of a group; a few rows after the other."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[piece.dtype]

    def merge(raw: bytearray) -> memoryview:
        raw_RN = torch.frombuffer(raw, dtype=dtype).view(len(piece.spans), -1)
        heads_RN = raw_RN.to(torch.float32 if dtype.itemsize == 2 else torch.float64)
        # The sum is the cheap test; numbers whose sum overflows get the exact one.
        if not torch.isfinite(heads_RN.sum()) and not torch.isfinite(heads_RN).all():
            raise piece.not_finite()
        if piece.fold:
            heads_RN = _fold(heads_RN, piece.fold, piece.columns)
        head_N = method(heads_RN, generator) if len(heads_RN) > 1 else heads_RN[0]
        return head_N.to(dtype).contiguous().view(torch.uint8).numpy().data

    return merge


def _fold(heads_RN: torch.Tensor, fold: Fold, columns: int) -> torch.Tensor:
    """Sum columns over the KV heads of each group; to expand, give all to the first of the copies."""
    width, shared = columns // fold.source, max(1, fold.source // fold.target)
    if fold.target <= fold.source:
        return heads_RN.reshape(len(heads_RN), -1, fold.target, shared, width).sum(dim=3).flatten(1)
    spread = heads_RN.reshape(len(heads_RN), -1, fold.source, 1, width)
    zeros = spread.new_zeros(*spread.shape[:3], fold.target // fold.source - 1, width)
    return torch.cat([spread, zeros], dim=3).flatten(1)


@contextlib.contextmanager
def single_torch_thread() -> Iterator[None]:
    """Merging is bound by memory, and runs on our own threads: torch's would only get in their way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
