"""What a checkpoint directory holds: its config, its tensors as byte ranges, its other files.

Files from outside are hostile until checked here: shard names with a path in them, truncated or
overlapping tensors, an index that disagrees with its shards, two sets of weights side by side,
adapters. Headers only; no tensor is read and nothing is executed. Pickles are `pickles.py`'s.
"""

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pickles import read_pickle
from mha2gqa.files.pieces import TensorInfo, path_of

SAFE_FILE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_FILE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
RECORD = "mha2gqa.json"

_ADAPTER = "adapter_config.json"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz")
_INDEX_SUFFIX = ".index.json"
_LEFT_BEHIND = {"config.json", "README.md", RECORD}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that passed every check that headers allow."""

    directory: Path
    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    """In file order: shard by shard, by offset."""
    metadata: dict[str, str]
    """The `__metadata__` of the first safetensors file."""
    companions: tuple[Path, ...]
    """Files to copy beside the weights, relative to the directory: tokenizer, templates, code."""


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint's config and headers.

    Raises:
        CheckpointError: Anything is missing, malformed, contradictory or unsafe.
    """
    _refuse_adapter(directory)
    config = read_json(directory / "config.json")
    tensors, metadata = _read_weights(directory)
    return Checkpoint(directory, config, tensors, metadata, tuple(_companions(directory)))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file is missing, is not JSON, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}",
            expected="a directory as save_pretrained writes it: config.json beside the weights",
            remedy="Name the directory that holds it",
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            expected="a JSON object",
            remedy="Restore the file, or download it again",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}", expected="a JSON object")
    return content


def has_weights(directory: Path) -> bool:
    """Return whether a directory holds weights at all; `inspect` also works without."""
    return any((directory / name).is_file() for name in (SAFE_FILE, SAFE_INDEX, PICKLE_FILE, PICKLE_INDEX))


def _read_weights(directory: Path) -> tuple[tuple[TensorInfo, ...], dict[str, str]]:
    files, weight_map = _locate_weights(directory)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, about = read_safetensors(file) if file.suffix == ".safetensors" else (read_pickle(file), {})
        metadata = metadata or about
        for info in found:
            _refuse_twin(info, tensors, file)
            tensors[info.name] = info
    _check_index(weight_map, tensors)
    return tuple(tensors.values()), metadata


def _locate_weights(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files and the index's map of tensor name to file name (empty without one)."""
    for single, index in ((SAFE_FILE, SAFE_INDEX), (PICKLE_FILE, PICKLE_INDEX)):
        has_single, has_index = (directory / single).is_file(), (directory / index).is_file()
        if has_index:
            weight_map = _read_index(directory / index)
            shards = sorted(set(weight_map.values()))
            if has_single and shards != [single]:
                raise CheckpointError(
                    f"{directory} holds both {single} and {index}, which names other files",
                    expected="one set of weights; loaders would take the single file and ignore the index",
                    remedy="Delete the one that is stale",
                )
            return [_existing_shard(directory, shard, index) for shard in shards], weight_map
        if has_single:
            return [directory / single], {}
    raise CheckpointError(
        f"There are no weights in {directory}",
        expected=f"{SAFE_FILE}, {SAFE_INDEX}, {PICKLE_FILE} or {PICKLE_INDEX}",
    )


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    is_map = isinstance(weight_map, dict) and all(isinstance(shard, str) for shard in weight_map.values())
    if not is_map or not weight_map:
        raise CheckpointError(
            f"{path} has no usable weight_map", expected="an object that maps tensor names to file names"
        )
    for shard in set(weight_map.values()):
        if Path(shard).name != shard or "\\" in shard or shard in (".", ".."):
            raise CheckpointError(
                f"{path} names the file {shard!r}",
                expected="the name of a file in the same directory, without a path",
                remedy="Do not use a checkpoint from a source that you do not trust",
            )
    return dict(weight_map)


def _existing_shard(directory: Path, shard: str, index: str) -> Path:
    if not (directory / shard).is_file():
        raise CheckpointError(f"{index} names {shard}, which is not in {directory}", remedy="Download the missing file")
    return directory / shard


def _check_index(weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, shard in weight_map.items():
        info = tensors.get(name)
        if info is None or path_of(info.file).name != shard:
            where = "no file holds it" if info is None else f"it is in {path_of(info.file).name}"
            raise CheckpointError(
                f"The index says that tensor {name!r} is in {shard}, but {where}",
                expected="an index that agrees with its files",
                remedy="Download the checkpoint again",
            )


def _refuse_twin(info: TensorInfo, tensors: dict[str, TensorInfo], file: Path) -> None:
    if info.name in tensors:
        raise CheckpointError(
            f"Tensor {info.name!r} is both in {path_of(tensors[info.name].file).name} and in {file.name}",
            expected="each tensor in one file",
            remedy="Delete the stale file",
        )


def read_safetensors(file: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """Read the header of a safetensors file; the safetensors library validates it.

    Returns:
        The tensors by offset, and the file's metadata.

    Raises:
        CheckpointError: The header is malformed, or tensors overlap, leave holes or are truncated.
    """
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is damaged: {error}",
            expected="a complete safetensors file",
            remedy="Download the file again",
        ) from error
    metadata = header.pop("__metadata__", {})
    return sorted(_infos(file, header, 8 + length), key=lambda info: (info.offset, info.size)), metadata


def _infos(file: Path, header: dict[str, Any], start: int) -> Iterable[TensorInfo]:
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        yield TensorInfo(name, entry["dtype"], tuple(entry["shape"]), file, start + first, last - first)


def _refuse_adapter(directory: Path) -> None:
    if (directory / _ADAPTER).is_file():
        raise CheckpointError(
            f"{directory} holds an adapter ({_ADAPTER})",
            expected="plain weights: an adapter's K and V matrices have the old number of heads",
            remedy="Merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
        )


def _companions(directory: Path) -> Iterable[Path]:
    """Yield what a loader needs beside the weights; hidden files, weights and other checkpoints stay behind."""
    for root, folders, files in os.walk(directory):
        inside = (folder for folder in folders if not (folder.startswith(".") or _is_checkpoint(Path(root) / folder)))
        folders[:] = sorted(inside)
        relative = Path(root).relative_to(directory)
        for name in sorted(files):
            is_weight = name.endswith((*_WEIGHT_SUFFIXES, _INDEX_SUFFIX))
            is_ours = relative == Path() and name in _LEFT_BEHIND
            if not (name.startswith(".") or is_weight or is_ours):
                yield relative / name


def _is_checkpoint(directory: Path) -> bool:
    return (directory / "config.json").is_file()
