"""The tensors of a `pytorch_model.bin`, without executing it, and without believing what it says of its sizes.

A file of the current form is a zip archive: a pickle that describes the tensors, and a member for each storage. The
pickle alone goes to `torch.load(weights_only=True)`, under FakeTensorMode and in an archive of our own with empty
members for the storages. So nothing is allocated, and each tensor's storage is known by its member, whose bytes are
where the file's own table has them. Most tensors are then byte ranges, as in a safetensors file; views with strides and
compressed members are held in memory. Files older than torch 1.6 are one stream, and loaded whole once their pickle
was described in the same way.
"""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import torch

from mha2gqa.errors import CheckpointError
from mha2gqa.files.described import NAMES, check_state_dict, describe
from mha2gqa.files.pieces import MemoryFile, TensorInfo

_LARGEST_PICKLE = 16 << 20
"""Bytes that describe the tensors: 100 each; unpickling more would take longer than half a minute."""
_MEMORY = 64 << 20
"""Bytes that may be held in memory whatever the size of the file."""
_ZIP = b"PK\x03\x04"
_ENCRYPTED = 1


def read_pickle(file: Path) -> list[TensorInfo]:
    """Return the tensors of a pickled state dict; those that are byte ranges are ordered by their place in the file.

    Raises:
        CheckpointError: The file is damaged, holds anything but tensors by name, or wants to
            execute something, or to be held in far more memory than it has bytes.
    """
    with _damages(file):
        with file.open("rb") as stream:
            is_archive = stream.read(4) == _ZIP
        return list(_Archive.read(file) if is_archive else _stream(file))


@dataclass(frozen=True)
class _Archive:
    """A zip archive as torch.save writes it, by its own table of members."""

    file: Path
    archive: zipfile.ZipFile
    root: str
    """The folder that everything lies in."""

    @classmethod
    def read(cls, file: Path) -> Iterator[TensorInfo]:
        """Yield the tensors."""
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise ValueError("it has two members of one name")
            yield from cls(file, archive, names[0].partition("/")[0])._tensors()

    def _tensors(self) -> Iterator[TensorInfo]:
        self._check_order()
        index, members = self._index()
        described = describe(index, self.file)
        storages = {one.name: members[one.place] for one in described}
        for one in described:
            storage = storages[one.name].file_size
            if one.storage > storage or (one.start + one.span) * one.dtype.itemsize > storage:
                raise ValueError(f"tensor {one.name!r} reaches beyond its storage")
        packed = {member.filename: member.file_size for member in storages.values() if _is_packed(member)}
        _check_memory(self.file, sum(packed.values()) + sum(one.size for one in described if not one.is_contiguous))
        described.sort(key=lambda one: (storages[one.name].header_offset, one.start))
        contents: dict[str, memoryview] = {}
        for one in described:
            member, first = storages[one.name], one.start * one.dtype.itemsize
            if _is_packed(member):
                name = member.filename
                contents[name] = contents[name] if name in contents else memoryview(bytearray(self.archive.read(name)))
            content = contents.get(member.filename)
            if one.is_contiguous:
                place = self._data(member) if content is None else 0
                yield one.info(self.file if content is None else MemoryFile(self.file, content), place + first)
            elif content is not None:
                yield one.gathered(content[first:], self.file)
            else:
                yield one.gathered(self._read(self._data(member) + first, one.span * one.dtype.itemsize), self.file)

    def _check_order(self) -> None:
        """Refuse bytes in another order than this machine's; torch would swap those that it has not loaded."""
        name = f"{self.root}/byteorder"
        order = self._small(name, 16) if name in self.archive.NameToInfo else b"little"
        if order != sys.byteorder.encode():
            raise CheckpointError(
                f"{self.file} was written on a machine with another order of bytes ({order.decode(errors='replace')})",
                expected=f"bytes in {sys.byteorder}-endian order",
                remedy="Load it on that machine and save it as safetensors",
            )

    def _index(self) -> tuple[io.BytesIO, dict[int, zipfile.ZipInfo]]:
        """Return an archive of the pickle and empty storages, and which member stands where in it."""
        index, members = io.BytesIO(), {}
        with zipfile.ZipFile(index, "w") as archive:
            archive.writestr("archive/data.pkl", self._small(f"{self.root}/data.pkl", _LARGEST_PICKLE))
            archive.writestr("archive/byteorder", sys.byteorder)
            archive.writestr("archive/version", "3\n")
            for member in self.archive.infolist():
                if member.filename.startswith(f"{self.root}/data/"):
                    header = archive.start_dir
                    archive.writestr(name := f"archive/{member.filename.partition('/')[2]}", b"")
                    members[header + 30 + len(name.encode())] = member
        index.seek(0)
        return index, members

    def _small(self, name: str, most: int) -> bytes:
        size = self.archive.getinfo(name).file_size
        if size > most:
            raise CheckpointError(
                f"{self.file} describes its tensors in {size:,} bytes",
                expected=f"at most {most:,}",
                remedy="Save it as safetensors, in several files",
            )
        return self.archive.read(name)

    def _data(self, member: zipfile.ZipInfo) -> int:
        """Return where the bytes of a member begin, behind its own header."""
        header = bytes(self._read(member.header_offset, 30))
        name, extra = struct.unpack("<HH", header[26:30])
        data = int(member.header_offset + 30 + name + extra)
        if header[:4] != _ZIP or data + member.file_size > self.file.stat().st_size:
            raise ValueError(f"{member.filename} is not where the table says")
        return data

    def _read(self, offset: int, size: int) -> memoryview:
        content = os.pread(self._descriptor, size, offset) if size else b""
        if len(content) < size:
            raise ValueError(f"it ends at byte {offset + len(content)}")
        return memoryview(bytearray(content))

    @cached_property
    def _descriptor(self) -> int:
        opened: IO[bytes] | None = self.archive.fp
        if opened is None:
            raise RuntimeError("the archive is closed")
        return opened.fileno()


def _is_packed(member: zipfile.ZipInfo) -> bool:
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{member.filename} is encrypted")
    return member.compress_type != zipfile.ZIP_STORED


def _stream(file: Path) -> Iterable[TensorInfo]:
    """Return the tensors of a file that is older than the archives."""
    with file.open("rb") as stream:
        described = describe(io.BytesIO(stream.read(_LARGEST_PICKLE)), file)
    held = max(sum(one.size for one in described), max((one.storage for one in described), default=0))
    _check_memory(file, held)
    content = torch.load(file, map_location="cpu", weights_only=True)
    check_state_dict(content, file)
    return [_held(name, tensor, file) for name, tensor in content.items()]


def _held(name: str, tensor: torch.Tensor, file: Path) -> TensorInfo:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return TensorInfo(name, NAMES[tensor.dtype], tuple(tensor.shape), MemoryFile(file, content), 0, len(content))


def _check_memory(file: Path, held: int) -> None:
    """Refuse tensors that take far more memory than the file takes on the disk: few bytes that stand for many."""
    status = file.stat()
    stored = status.st_blocks * 512 or status.st_size
    if held > max(_MEMORY, 2 * stored):
        raise CheckpointError(
            f"{file} takes {stored:,} bytes on the disk, and its tensors would take {held:,} in memory",
            expected="tensors that are neither expanded nor compressed",
            remedy="Load it and save it as safetensors, with tensor.contiguous()",
        )


@contextmanager
def _damages(file: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, PermissionError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, and loading it could execute code: it was not loaded",
            expected="a state dict that torch.load(weights_only=True) accepts",
            remedy="Use a safetensors version of the checkpoint, or one from a source that you trust",
        ) from error
    except Exception as error:  # a damaged pickle fails in every way: KeyError, struct.error, AssertionError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{file} is damaged: {reason[:300]}",
            expected="a complete file of torch.save",
            remedy="Download the file again",
        ) from error
