"""What a checkpoint directory holds: its config, its tensors as byte ranges, its other files.

Files from outside are hostile until checked here: shard names with a path in them, truncated or
overlapping tensors, an index that disagrees with its shards, two sets of weights side by side,
adapters. Headers only; no tensor is read and nothing is executed. Pickles are `pickles.py`'s, what is opened at all is
`plain.py`'s, what lies beside the weights `companions.py`'s.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mha2gqa.errors import CheckpointError, visible
from mha2gqa.files.companions import find_belongings
from mha2gqa.files.pieces import TensorInfo, path_of
from mha2gqa.files.plain import State, check_unchanged, each_once, look, unreadable
from mha2gqa.files.plain import read_json as read_json
from mha2gqa.files.quantised import without_stale
from mha2gqa.files.wrappers import unwrapped

SAFE_FILE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_FILE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
RECORD = "mha2gqa.json"

_ADAPTER = "adapter_config.json"
_MOST_TENSORS, _MOST_EMPTY = 150_000, 1_000
_LARGEST_HEADER = 32 << 20
"""Bytes of a safetensors header; the tensors of a mixture of a thousand experts are described in a tenth of that."""


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
    left_behind: tuple[str, ...] = ()
    """Names of what is not copied: files, and folders with a slash."""
    unwrapped: tuple[str, ...] = ()
    """Prefixes of wrappers, such as `module.`, that were taken off the names of the file."""
    stale: tuple[str, ...] = ()
    """Keys of config.json that were taken out of `config`: they speak of a quantisation that no tensor has."""
    has_plain_index: bool = True
    """Whether transformers reads the index itself, if there is one: it insists on `metadata`, which tells nothing."""
    states: Mapping[Path, State] = field(default_factory=dict)
    """How each file that was read, or will be, was at first."""

    def check_unchanged(self) -> None:
        """Refuse a checkpoint that something else has written to since it was read.

        Raises:
            CheckpointError: It has changed, or a part of it is gone.
        """
        check_unchanged(self.states)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint's config and headers.

    Raises:
        CheckpointError: Anything is missing, malformed, contradictory or unsafe.
    """
    _refuse_adapter(directory)
    states: dict[Path, State] = {}
    config = read_json(_look(directory / "config.json", states))
    files, weight_map = _locate_weights(directory, states)
    tensors, metadata = _read_weights(files, weight_map)
    plain = unwrapped([info.name for info in tensors])
    beside = find_belongings(directory, config, [path.name for path in states])
    indexes = [path for path in states if path.name in (SAFE_INDEX, PICKLE_INDEX)]
    config, stale = without_stale(config, tensors)
    return Checkpoint(
        directory,
        config,
        tuple(replace(info, name=name) for info, name in zip(tensors, plain.names, strict=True)),
        metadata,
        beside.companions,
        left_behind=beside.left_behind,
        unwrapped=plain.prefixes,
        stale=stale,
        has_plain_index=all(isinstance(read_json(path).get("metadata"), dict) for path in indexes),
        states={**states, **beside.states},
    )


def _look(path: Path, states: dict[Path, State]) -> Path:
    """Refuse what is no ordinary file of its directory, and note how it is; what is missing is told by its reader."""
    with contextlib.suppress(FileNotFoundError):
        states[path] = look(path, path.parent)
    return path


def has_weights(directory: Path) -> bool:
    """Return whether a directory holds weights at all; `inspect` also works without."""
    return any(os.path.lexists(directory / name) for name in (SAFE_FILE, SAFE_INDEX, PICKLE_FILE, PICKLE_INDEX))


def _read_weights(files: list[Path], weight_map: dict[str, str]) -> tuple[tuple[TensorInfo, ...], dict[str, str]]:
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, about = read_safetensors(file) if file.suffix == ".safetensors" else (_read_pickle(file), {})
        metadata = metadata or about
        for info in found:
            _check_name(info, tensors, file)
            tensors[info.name] = info
    _check_index(weight_map, tensors)
    _check_number(tensors)
    return tuple(tensors.values()), metadata


def _read_pickle(file: Path) -> list[TensorInfo]:
    from mha2gqa.files.pickles import read_pickle  # few checkpoints are pickles still

    try:
        return read_pickle(file)
    except PermissionError as error:
        raise unreadable(file, error) from error


def _locate_weights(directory: Path, states: dict[Path, State]) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files and the index's map of tensor name to file name (empty without one)."""
    for single, index in ((SAFE_FILE, SAFE_INDEX), (PICKLE_FILE, PICKLE_INDEX)):
        has_single, has_index = (os.path.lexists(directory / name) for name in (single, index))
        if has_index:
            weight_map = _read_index(_look(directory / index, states))
            shards = sorted(set(weight_map.values()))
            if has_single and shards != [single]:
                raise CheckpointError(
                    f"{directory} holds both {single} and {index}, which names other files",
                    expected="one set of weights; loaders would take the single file and ignore the index",
                    remedy="Delete the one that is stale",
                )
            return [_existing_shard(directory, shard, index, states) for shard in shards], weight_map
        if has_single:
            return [_look(directory / single, states)], {}
    from mha2gqa.files.foreign import no_weights  # to say what lies there instead

    raise no_weights(directory, (SAFE_FILE, SAFE_INDEX, PICKLE_FILE, PICKLE_INDEX))


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    is_map = isinstance(weight_map, dict) and all(isinstance(shard, str) for shard in weight_map.values())
    if not is_map or not weight_map:
        raise CheckpointError(
            f"{path} has no usable weight_map", expected="an object that maps tensor names to file names"
        )
    for shard in set(weight_map.values()):
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or shard in (".", ".."):
            raise CheckpointError(
                f"{path} names the file {shard!r}",
                expected="the name of a file in the same directory, without a path",
                remedy="Do not use a checkpoint from a source that you do not trust",
            )
    return dict(weight_map)


def _existing_shard(directory: Path, shard: str, index: str, states: dict[Path, State]) -> Path:
    path = _look(directory / shard, states)
    if path not in states:
        raise CheckpointError(f"{index} names {shard}, which is not in {directory}", remedy="Download the missing file")
    return path


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


def _check_name(info: TensorInfo, tensors: dict[str, TensorInfo], file: Path) -> None:
    if info.name in tensors:
        raise CheckpointError(
            f"Tensor {info.name!r} is both in {path_of(tensors[info.name].file).name} and in {file.name}",
            expected="each tensor in one file",
            remedy="Delete the stale file",
        )
    if visible(info.name) != info.name or "\n" in info.name:
        raise CheckpointError(f"A tensor of {file} has the name {info.name!r}", expected="a name that can be printed")


def _check_number(tensors: Mapping[str, TensorInfo]) -> None:
    empty = sum(info.size == 0 for info in tensors.values())
    for number, most, what in (
        (len(tensors), _MOST_TENSORS, "tensors"),
        (empty, _MOST_EMPTY, "tensors without a number"),
    ):
        if number > most:
            raise CheckpointError(
                f"The checkpoint holds {number:,} {what}",
                expected=f"at most {most:,}, more than any model that was published",
                remedy="Check where it comes from",
            )


def read_safetensors(file: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """Read the header of a safetensors file; the safetensors library validates it.

    Returns:
        The tensors by offset, and the file's metadata.

    Raises:
        CheckpointError: The header is malformed, or tensors overlap, leave holes or are truncated.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if _LARGEST_HEADER < length < file.stat().st_size:
                raise ValueError(f"its header has {length:,} bytes, more than {_LARGEST_HEADER:,}")
            with safe_open(file, framework="np"):
                pass
            header: dict[str, Any] = json.loads(stream.read(length), object_pairs_hook=each_once)
    except PermissionError as error:
        raise unreadable(file, error) from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is damaged: {error}",
            expected="a complete safetensors file",
            remedy="Download the file again",
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    return sorted(_infos(file, header, 8 + length), key=lambda info: (info.offset, info.size)), metadata


def _infos(file: Path, header: dict[str, Any], start: int) -> Iterable[TensorInfo]:
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        yield TensorInfo(name, entry["dtype"], tuple(entry["shape"]), file, start + first, last - first)


def _refuse_adapter(directory: Path) -> None:
    if os.path.lexists(directory / _ADAPTER):
        raise CheckpointError(
            f"{directory} holds an adapter ({_ADAPTER})",
            expected="plain weights: an adapter's K and V matrices have the old number of heads",
            remedy="Merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
        )
