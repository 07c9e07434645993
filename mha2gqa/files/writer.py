"""Writes the weights of a checkpoint: one group of heads at a time, on threads, with checksums on the way.

`divide` puts the output tensors into files, `write_weights` streams them. Every tensor's XXH3
checksum comes out of the same pass. The files are synced here; the directory around them, and that
it appears at once or not at all, is `staging.py`'s.
"""

import contextlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from mha2gqa.files.pieces import Copy, Merge, OutputTensor, VirtualFile
from mha2gqa.files.pool import Pool
from mha2gqa.files.reader import SAFE_FILE, SAFE_INDEX
from mha2gqa.files.streams import BLOCK, Sources, Writer, should_drop_behind
from mha2gqa.files.threads import run_on_threads
from mha2gqa.progress import Advance

_RUN = 64 << 20
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class OutputFile:
    """One file of weights: its name and its tensors in file order."""

    name: str
    tensors: tuple[OutputTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(tensor.size for tensor in self.tensors)


def divide(tensors: Sequence[OutputTensor], max_shard_size: int | None) -> tuple[OutputFile, ...]:
    """Divide tensors into files: as the source is divided, or none larger than `max_shard_size` bytes.

    A single tensor that is larger gets a file of its own. Names are the ones that every loader knows.
    """
    shards: list[list[OutputTensor]] = []
    room, current = 0, None
    for tensor in tensors:
        is_full = tensor.size > room if max_shard_size is not None else tensor.origin != current
        if is_full or not shards:
            shards.append([])
            room, current = max_shard_size or 0, tensor.origin
        shards[-1].append(tensor)
        room -= tensor.size
    names = [SAFE_FILE] if len(shards) == 1 else _shard_names(len(shards))
    # Wide dtypes first: a tensor then starts at a multiple of its element size.
    ordered = [sorted(shard, key=lambda tensor: -_SIZES.get(tensor.dtype, 1)) for shard in shards]
    return tuple(OutputFile(name, tuple(shard)) for name, shard in zip(names, ordered, strict=True))


def _shard_names(count: int) -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_weights(
    directory: Path,
    files: Sequence[OutputFile],
    *,
    pool: Pool,
    metadata: dict[str, str],
    advance: Advance,
) -> dict[str, str]:
    """Write the files, and an index when there are several.

    Args:
        directory: Where to write; must exist.
        files: What to write.
        pool: Makes one head of the heads of a group.
        metadata: The `__metadata__` of the source; `format: pt` is added.
        advance: Told of every run of bytes written.

    Returns:
        Tensor name -> XXH3-128 checksum of its bytes, in hexadecimal.

    Raises:
        CheckpointError: A source file ends early, or K/V hold NaN or infinity.
    """
    total = sum(file.size for file in files)
    drop_behind = should_drop_behind(total)
    checksums: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        sources = Sources()
        stack.callback(sources.close)
        pieces = (piece for file in files for tensor in file.tensors for piece in tensor.pieces)
        stack.enter_context(pool.prepared(piece for piece in pieces if isinstance(piece, Merge)))
        runs: list[_TensorRun] = []
        for file in files:
            descriptor = os.open(directory / file.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, descriptor)
            runs += _start_file(descriptor, file, metadata | {"format": "pt"}, drop_behind)
        run_on_threads(runs, lambda run, tell: checksums.update(run.write(sources, pool, tell)), advance, total)
        for descriptor in dict.fromkeys(run.descriptor for run in runs):
            os.fsync(descriptor)
            if drop_behind:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if len(files) > 1:
        _write_index(directory / SAFE_INDEX, files)
    return {tensor.name: checksums[tensor.name] for file in files for tensor in file.tensors}


@dataclass(frozen=True)
class _TensorRun:
    """A run of whole tensors that lie behind one another in a file; one thread writes it."""

    descriptor: int
    offset: int
    tensors: tuple[OutputTensor, ...]
    drop_behind: bool

    def write(self, sources: Sources, pool: Pool, tell: Callable[[int], object]) -> dict[str, str]:
        """Write the tensors; return their checksums."""
        writer = Writer(self.descriptor, self.offset, drop_behind=self.drop_behind)
        checksums = {}
        for tensor in self.tensors:
            checksum = xxhash.xxh3_128()
            for piece in tensor.pieces:
                if isinstance(piece, Copy):
                    writer.copy(sources, piece.span, checksum.update, tell)
                else:
                    for view in pool.slices(sources, piece):
                        checksum.update(view)
                        writer.write(view)
                        tell(len(view))
            checksums[tensor.name] = checksum.hexdigest()
        writer.finish()
        return checksums


def _start_file(descriptor: int, file: OutputFile, metadata: dict[str, str], drop_behind: bool) -> list[_TensorRun]:
    """Write the header of a file and return the runs of its tensors."""
    header = _header(file, metadata)
    Writer(descriptor, 0, drop_behind=False).write(memoryview(header))
    runs: list[_TensorRun] = []
    offset = start = len(header)
    run: list[OutputTensor] = []
    for tensor in file.tensors:
        run.append(tensor)
        offset += tensor.size
        if offset - start >= _RUN or tensor is file.tensors[-1]:
            runs.append(_TensorRun(descriptor, start, tuple(run), drop_behind))
            start, run = offset, []
    return runs


def _header(file: OutputFile, metadata: dict[str, str]) -> bytes:
    """Return the safetensors header, padded so that the first copied run can be cloned (reflink)."""
    entries: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for tensor in file.tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (offset, offset + tensor.size),
        }
        offset += tensor.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (_data_start(file, 8 + len(text)) - 8 - len(text))
    return struct.pack("<Q", len(text)) + text


def _data_start(file: OutputFile, least: int) -> int:
    """Return where the data begins: a multiple of 8, congruent to the source's modulo a block."""
    written = 0
    for tensor in file.tensors:
        for piece in tensor.pieces:
            if isinstance(piece, Copy) and not isinstance(piece.span.file, VirtualFile):
                wanted = piece.span.offset - written
                if wanted % 8 == 0:
                    return least + (wanted - least) % BLOCK
            written += piece.size
    return least + -least % 8


def _write_index(path: Path, files: Sequence[OutputFile]) -> None:
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    metadata = {
        "total_parameters": sum(tensor.parameters for file in files for tensor in file.tensors),
        "total_size": sum(file.size for file in files),
    }
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
