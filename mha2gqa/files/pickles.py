"""The tensors of a `pytorch_model.bin`, without executing it and without loading it.

`torch.load(weights_only=True)` refuses everything but tensors. Under `FakeTensorMode` it allocates
nothing and leaves on each storage the offset of its bytes in the file, so that a pickle of the
current (zip) format is byte ranges like a safetensors file. Files older than torch 1.6, and
tensors that are views with strides, are held in memory instead.
"""

import bisect
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import DTYPES, File, MemoryFile, TensorInfo

_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_pickle(file: Path) -> list[TensorInfo]:
    """Return the tensors of a pickled state dict, ordered by their place in the file.

    Raises:
        CheckpointError: The file is damaged, holds anything but tensors by name, or wants to
            execute something.
    """
    if _is_stored(file):
        with FakeTensorMode():
            tensors = _load(file)
        if all(_has_range(tensor) for tensor in tensors.values()):
            infos = [_info(name, tensor, file, _offset(tensor)) for name, tensor in tensors.items()]
            _check_inside(file, tensors, infos)
            return sorted(infos, key=lambda info: info.offset)
    return [_in_memory(name, tensor, file) for name, tensor in _load(file).items()]


def _is_stored(file: Path) -> bool:
    """Return whether a file is a zip archive without compression, so that tensors are ranges of it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _load(file: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, and loading it could execute code: it was not loaded",
            expected="a state dict that torch.load(weights_only=True) accepts",
            remedy="Use a safetensors version of the checkpoint, or one from a source that you trust",
        ) from error
    except Exception as error:  # a damaged pickle fails in every way: KeyError, struct.error, AssertionError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{file} is damaged: {reason}", expected="a complete file of torch.save", remedy="Download the file again"
        ) from error
    return _tensors(content, file)


def _tensors(content: Any, file: Path) -> dict[str, torch.Tensor]:
    is_named = isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())
    if not is_named:
        keys = ", ".join(map(repr, list(content)[:3])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{file} is not a state dict (it holds {keys})",
            expected="tensors by name, as save_pretrained writes them",
            remedy="Unwrap it: torch.save(torch.load(file, weights_only=True)['state_dict'], file)",
        )
    for name, tensor in content.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"Tensor {name!r} of {file} has dtype {tensor.dtype}", expected="a plain dtype")
    return dict(content)


def _has_range(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and getattr(tensor.untyped_storage(), "_checkpoint_offset", None) is not None


def _offset(tensor: torch.Tensor) -> int:
    start: int = getattr(tensor.untyped_storage(), "_checkpoint_offset")  # noqa: B009 (torch's stubs lack it)
    return start + int(tensor.storage_offset()) * tensor.element_size()


def _check_inside(file: Path, tensors: Mapping[str, torch.Tensor], infos: list[TensorInfo]) -> None:
    """Refuse a tensor that reaches beyond its storage, into other bytes of the file."""
    with zipfile.ZipFile(file) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    starts = [member.header_offset for member in members]
    for info in infos:
        start = getattr(tensors[info.name].untyped_storage(), "_checkpoint_offset")  # noqa: B009
        if info.offset + info.size > start + members[bisect.bisect(starts, start) - 1].file_size:
            raise CheckpointError(
                f"{file} is damaged: tensor {info.name!r} reaches beyond its storage",
                expected="a complete file of torch.save",
                remedy="Download the file again",
            )


def _info(name: str, tensor: torch.Tensor, file: File, offset: int) -> TensorInfo:
    size = tensor.numel() * tensor.element_size()
    return TensorInfo(name, _NAMES[tensor.dtype], tuple(tensor.shape), file, offset, size)


def _in_memory(name: str, tensor: torch.Tensor, file: Path) -> TensorInfo:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return _info(name, tensor, MemoryFile(file, content), 0)
