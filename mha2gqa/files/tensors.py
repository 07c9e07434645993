"""Reads single tensors of a checkpoint into memory, and writes them into small files of their own.

For methods that compute with a whole layer. Everything else of a conversion is moved as bytes (`streams.py`).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from mha2gqa.errors import CheckpointError
from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.pieces import Span, TensorInfo
from mha2gqa.files.reader import read_safetensors
from mha2gqa.files.streams import Sources


def read_tensor(sources: Sources, info: TensorInfo) -> torch.Tensor:
    """Return a tensor in the dtype of the file.

    Raises:
        CheckpointError: It is quantised, holds NaN or infinity, or its file ends early.
    """
    if info.dtype not in DTYPES:
        raise CheckpointError(
            f"Tensor {info.name!r} has dtype {info.dtype}: the checkpoint is quantised",
            expected=f"attention weights in one of {', '.join(DTYPES)}",
            remedy="Convert the unquantised checkpoint, then quantise the result",
        )
    tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
    sources.read_into(Span(info.file, info.offset, info.size), tensor.view(-1).view(torch.uint8).numpy().data)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"Tensor {info.name!r} holds NaN or infinity",
            expected="finite numbers in the attention weights",
            remedy="The checkpoint is broken there: take an earlier one of the training run",
        )
    return tensor


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as a safetensors file that appears at once and whole."""
    partial = path.with_suffix(".partial")
    # As bytes: what `save_file` raises on a full disk is no OSError.
    partial.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, dict(metadata)))
    partial.rename(path)


def locate_tensors(path: Path) -> tuple[tuple[TensorInfo, ...], dict[str, str]]:
    """Return where the tensors of such a file lie, and its metadata."""
    infos, metadata = read_safetensors(path)
    return tuple(infos), metadata
