"""numpy makes one head of a group's to the bit as torch does, in every dtype, and leaves to torch what it cannot."""

from pathlib import Path

import pytest
import torch

from mha2gqa.errors import CheckpointError
from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.pieces import Fold, MemoryFile, Merge, Span
from mha2gqa.files.pool import Pool
from mha2gqa.files.streams import Sources
from mha2gqa.methods import METHODS

EXACT = [name for name, method in METHODS.items() if method.arrays]


def group(heads_RN: torch.Tensor, dtype: str, columns: int) -> Merge:
    """The heads of a group, as they lie in a file."""
    content = heads_RN.to(DTYPES[dtype]).contiguous().view(torch.uint8)
    file = MemoryFile(Path("source"), memoryview(bytearray(content.numpy().tobytes())))
    size = content.shape[1]
    spans = tuple(Span(file, head * size, size) for head in range(len(heads_RN)))
    return Merge("k_proj.weight", "kv", dtype, spans, 0, columns)


def random_heads(heads: int, numbers: int) -> torch.Tensor:
    """Numbers of many magnitudes, whose sum depends on the order."""
    generator = torch.Generator().manual_seed(heads * numbers)
    drawn = torch.randn(2, heads, numbers, dtype=torch.float64, generator=generator)
    return (drawn[0] * (4 * drawn[1]).exp()).clamp(-6e4, 6e4)  # fp16 has no more


def made(pool: Pool, piece: Merge) -> bytes:
    return b"".join(map(bytes, pool.slices(Sources(), piece)))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 7, 8, 16, 20, 32, 33, 64, 71])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_every_bit_is_that_of_torch(name: str, dtype: str, heads: int) -> None:
    pool = Pool(METHODS[name], 0)
    for numbers, columns in ((64, 1), (80, 1), (1920, 64)):
        piece = group(random_heads(heads, numbers), dtype, columns)
        raw = bytearray(b"".join(bytes(span.file.content[span.offset :][: span.size]) for span in piece.spans))
        assert made(pool, piece) == bytes(pool._by_torch(piece)(raw))
        assert pool._needs_torch(piece) == (heads > 4 and numbers == 80)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_sums_that_overflow_are_what_torch_makes_of_them(dtype: str) -> None:
    top = torch.finfo(DTYPES[dtype]).max
    piece = group(torch.tensor([[top, -top, 1.0, 0.0], [top, -top, top, -0.0]]).double(), dtype, 4)
    pool = Pool(METHODS["mean"], 0)
    raw = bytearray(piece.spans[0].file.content)
    assert made(pool, piece) == bytes(pool._by_torch(piece)(raw))


def test_what_is_folded_or_drawn_is_made_by_torch() -> None:
    piece = group(random_heads(2, 64), "F32", 4)
    folded = Merge(piece.tensor, piece.part, piece.dtype, piece.spans, piece.group, piece.columns, Fold(4, 2))
    assert Pool(METHODS["mean"], 0)._needs_torch(folded)
    assert Pool(METHODS["random"], 0)._needs_torch(piece)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_refused(dtype: str, bad: float) -> None:
    heads = random_heads(2, 64)
    heads[1, 5] = bad
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        made(Pool(METHODS["first"], 0), group(heads, dtype, 64))
