"""What a tensor of a file is, and what a tensor of the output is made of.

An input tensor is a byte range of a file. An output tensor is a sequence of pieces in file order:
`Copy` (a byte range as it is), `Merge` (the byte ranges of the heads of one group, which a method makes
one of) and `Computed` (what a method made of a whole layer). The writer needs nothing else, so it holds
one group of heads at a time, whatever the size of the model.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mha2gqa.errors import CheckpointError
from mha2gqa.heads.grouping import Groups

ITEMSIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Dtypes that can be merged, by their names in a safetensors header, and the bytes of a number."""


class VirtualFile(ABC):
    """Bytes that stand in for those of a file on disk."""

    path: Path
    """The file whose place they take."""

    @abstractmethod
    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on."""


@dataclass(frozen=True)
class MemoryFile(VirtualFile):
    """Bytes in memory: of a file that cannot be read by ranges (an old pickle)."""

    path: Path
    content: memoryview

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on."""
        view[:] = self.content[offset : offset + len(view)]


File: TypeAlias = Path | VirtualFile


def path_of(file: File) -> Path:
    """Return the path of a file, also of one that stands in for it."""
    return file.path if isinstance(file, VirtualFile) else file


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the source: where its bytes lie."""

    name: str
    dtype: str
    """As in a safetensors header: `BF16`, `F32`, `I64`, ..."""
    shape: tuple[int, ...]
    file: File
    offset: int
    """Of the first byte, from the start of the file."""
    size: int
    """Bytes."""

    @property
    def row_size(self) -> int:
        """Bytes of one index of axis 0."""
        return self.size // self.shape[0]


@dataclass(frozen=True)
class Span:
    """A contiguous byte range of a source file."""

    file: File
    offset: int
    size: int


@dataclass(frozen=True)
class Copy:
    """Bytes that are taken over as they are."""

    span: Span

    @property
    def size(self) -> int:
        """Bytes of output."""
        return self.span.size


@dataclass(frozen=True)
class Computed(Copy):
    """Bytes that a method computed before, and that lie in a file of their own."""

    origin: Path
    """The source file whose place they take."""


@dataclass(frozen=True)
class Made(Copy):
    """Bytes that are computed of the source's tensors when they are read (`VirtualFile`)."""


@dataclass(frozen=True)
class LayerResult:
    """An attention layer that a method changed as a whole."""

    groups: Groups
    """Source KV heads of each KV head of the result."""
    tensors: tuple[TensorInfo, ...]
    """Its changed tensors, by their names in the source's file."""


@dataclass(frozen=True)
class Fold:
    """Columns that run over KV heads: summed over each group, or spread with zeros to expand."""

    source: int
    target: int


@dataclass(frozen=True)
class Merge:
    """The heads of one group, which become one; all spans have the same size."""

    tensor: str
    """Name of the source tensor, for messages and for the seed of methods that draw numbers."""
    part: str
    """Which of its parts: `k`, `v`, or `kv` where the tensor is one or the other."""
    dtype: str
    spans: tuple[Span, ...]
    group: int
    """Number of the group."""
    columns: int
    """Numbers in one row of a head."""
    fold: Fold | None = None

    @property
    def size(self) -> int:
        """Bytes of output."""
        size = self.spans[0].size
        return size * self.fold.target // self.fold.source if self.fold else size

    def not_finite(self) -> CheckpointError:
        """Return the refusal of heads that hold NaN or infinity."""
        return CheckpointError(
            f"Tensor {self.tensor!r} holds NaN or infinity",
            expected="finite numbers in K and V",
            remedy="The checkpoint is broken there: take an earlier one of the training run",
        )


Piece: TypeAlias = Copy | Merge


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the result."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.size for piece in self.pieces)

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def origin(self) -> Path:
        """The source file that its first bytes come from."""
        first = self.pieces[0]
        if isinstance(first, Computed):
            return first.origin
        return path_of(first.span.file if isinstance(first, Copy) else first.spans[0].file)

    @property
    def is_computed(self) -> bool:
        """Whether a method computed it before, so that only a checksum speaks for it later."""
        return any(isinstance(piece, Computed) for piece in self.pieces)

    @property
    def is_made(self) -> bool:
        """Whether it is computed of the source's tensors when it is read."""
        return any(isinstance(piece, Made) for piece in self.pieces)

    @property
    def is_copy(self) -> bool:
        """Whether the tensor is one of the source's, byte for byte."""
        return len(self.pieces) == 1 and type(self.pieces[0]) is Copy


def whole(info: TensorInfo, name: str | None = None) -> OutputTensor:
    """Return the output tensor that is `info` byte for byte, under its own or another name."""
    pieces = (Copy(Span(info.file, info.offset, info.size)),)
    return OutputTensor(name or info.name, info.dtype, info.shape, pieces)


def coalesce(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Join copies that lie behind one another in the same file into long runs."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Copy) and isinstance(last, Copy) and _adjoin(last.span, piece.span):
            joined[-1] = Copy(Span(last.span.file, last.span.offset, last.size + piece.size))
        else:
            joined.append(piece)
    return tuple(joined)


def _adjoin(first: Span, second: Span) -> bool:
    return first.file is second.file and first.offset + first.size == second.offset
