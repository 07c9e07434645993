"""What the pickle of a state dict says of its tensors, without memory for them, and with nothing executed."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mha2gqa.errors import CheckpointError
from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.pieces import MemoryFile, TensorInfo

NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in safetensors files."""


@dataclass(frozen=True)
class Described:
    """What a pickle says of a tensor; numbers of elements, unless said otherwise."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    """Within its storage."""
    storage: int
    """Bytes of the storage."""
    place: int
    """Where the storage's member is in the archive that was unpickled; -1 in a stream."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements from the first to the last one of it in the storage."""
        if not self.size:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are one run of bytes, in order."""
        wanted = 1
        for size, step in zip(self.shape[::-1], self.stride[::-1], strict=True):
            if size > 1 and step != wanted:
                return False
            wanted *= size
        return True

    def info(self, file: Path | MemoryFile, offset: int) -> TensorInfo:
        """Return where it is, as bytes of a file or of memory."""
        return TensorInfo(self.name, NAMES[self.dtype], self.shape, file, offset, self.size)

    def gathered(self, content: memoryview, file: Path) -> TensorInfo:
        """Return it held in memory; `content` begins with its first element."""
        flat = torch.frombuffer(content, dtype=self.dtype)
        whole = flat.as_strided(self.shape, self.stride).contiguous().reshape(-1).view(torch.uint8)
        return self.info(MemoryFile(file, whole.numpy().data), 0)


def describe(stream: IO[bytes], file: Path) -> list[Described]:
    """Unpickle without memory for the tensors.

    Args:
        stream: The pickle, in the archive or the stream that torch reads it from.
        file: What messages name.

    Raises:
        CheckpointError: It holds anything but plain tensors by name.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # prints the traceback of what it also raises
    disabled, logger.disabled = logger.disabled, True
    try:
        with FakeTensorMode():
            content = torch.load(stream, map_location="cpu", weights_only=True)
    finally:
        logger.disabled = disabled
    check_state_dict(content, file)
    return [_described(name, tensor, file) for name, tensor in content.items()]


def _described(name: str, tensor: torch.Tensor, file: Path) -> Described:
    if tensor.dtype not in NAMES:
        raise CheckpointError(f"Tensor {name!r} of {file} has dtype {tensor.dtype}", expected="a plain dtype")
    if tensor.layout is not torch.strided or tensor.is_neg() or tensor.is_conj():
        raise CheckpointError(f"Tensor {name!r} of {file} is no plain one", expected="a dense tensor as it is stored")
    storage = tensor.untyped_storage()
    place = getattr(storage, "_checkpoint_offset", None)
    start, stride = int(tensor.storage_offset()), tuple(map(int, tensor.stride()))
    shape, place = tuple(map(int, tensor.shape)), -1 if place is None else int(place)
    found = Described(name, tensor.dtype, shape, stride, start, storage.nbytes(), place)
    if min((start, *found.shape, *stride)) < 0:
        raise ValueError(f"tensor {name!r} has a negative size")
    return found


def check_state_dict(content: Any, file: Path) -> None:
    """Refuse what is not tensors by name.

    Raises:
        CheckpointError: It is not.
    """
    is_named = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )
    if not is_named:
        keys = ", ".join(map(repr, list(content)[:3])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{file} is not a state dict (it holds {keys})",
            expected="tensors by name, as save_pretrained writes them",
            remedy="Unwrap it: torch.save(torch.load(file, weights_only=True)['state_dict'], file)",
        )
