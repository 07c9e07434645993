"""Moves bytes from the files of a checkpoint to those of another.

Read and write through one aligned buffer a thread: measured against copy_file_range, sendfile and
memory maps this is the fastest on ordinary file systems. A checkpoint that is large beside memory
would evict itself from the page cache while it is copied and leave the kernel busy with reclaim, so
pages are then dropped behind on both sides. Where the file system can share extents (reflink), the
aligned inside of a run is cloned and only read for its checksum.

This file knows ranges, not tensors.
"""

import ctypes
import fcntl
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import Span, VirtualFile
from mha2gqa.files.plain import unreadable

BLOCK = 4096
"""Alignment of clones; the block size of the file systems that can share extents."""

_BUFFER = 1 << 20
_WINDOW = 32 << 20
_SYNC_WAIT_BEFORE, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4
_FICLONERANGE = 0x4020940D

Consumer: TypeAlias = Callable[[memoryview], object]


class Sources:
    """Opens source files once and reads ranges of them; safe to share between threads."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: Path) -> int:
        """Return the open descriptor of a file.

        Raises:
            CheckpointError: It is gone, or may not be opened.
        """
        with self._lock:
            if path not in self._descriptors:
                try:
                    self._descriptors[path] = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise unreadable(path, error) from error
            return self._descriptors[path]

    def read_into(self, span: Span, view: memoryview) -> None:
        """Fill `view` with the first bytes of `span`.

        Raises:
            CheckpointError: The file ends early: it was changed or truncated since it was planned.
        """
        size = len(view)
        if isinstance(span.file, VirtualFile):
            span.file.read_into(span.offset, view)
            return
        descriptor, done = self.descriptor(span.file), 0
        while done < size:
            count = _read_at(descriptor, view[done:], span.offset + done)
            if count == 0:
                raise CheckpointError(
                    f"{span.file} ended at byte {span.offset + done}",
                    expected=f"{span.offset + size} bytes, as its header said",
                    remedy="Check that nothing else writes to the source",
                )
            done += count

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


class Writer:
    """Writes one contiguous run of an output file, from `offset` on; used by one thread."""

    def __init__(self, descriptor: int, offset: int, *, drop_behind: bool) -> None:
        self.offset = offset
        self._descriptor = descriptor
        self._drop_behind = drop_behind
        self._started = offset
        self._previous: tuple[int, int] | None = None
        self._view = memoryview(mmap.mmap(-1, _BUFFER))

    def write(self, view: memoryview) -> None:
        """Write `view` at the current offset."""
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self.offset + done)
        self.offset += len(view)
        if self._drop_behind and self.offset - self._started >= _WINDOW:
            self._turn_window()

    def copy(self, sources: Sources, span: Span, consume: Consumer, progress: Callable[[int], object]) -> None:
        """Copy `span` to the current offset; `consume` sees every byte in order."""
        cloned = self._clone(sources, span)
        for start in range(0, span.size, _BUFFER):
            view = self._view[: min(_BUFFER, span.size - start)]
            sources.read_into(Span(span.file, span.offset + start, len(view)), view)
            consume(view)
            self._write_outside(view, start, cloned)
            self._drop_source(sources, span, start + len(view))
            progress(len(view))

    def finish(self) -> None:
        """Start writing back what is still pending; the caller syncs the file."""
        if self._drop_behind:
            self._turn_window()

    def _write_outside(self, view: memoryview, start: int, cloned: range) -> None:
        """Write the part of `view`, which begins at `start` of the span, that was not cloned."""
        end = start + len(view)
        head = view[: max(0, min(cloned.start, end) - start)]
        tail = view[max(0, max(cloned.stop, start) - start) :] if end > cloned.stop else view[:0]
        self.write(head)
        self.offset += len(view) - len(head) - len(tail)
        self.write(tail)

    def _clone(self, sources: Sources, span: Span) -> range:
        """Share the aligned inside of `span` with the source; return the part that was cloned."""
        nothing = range(span.size, span.size)
        start = -self.offset % BLOCK
        length = (span.size - start) // BLOCK * BLOCK
        is_aligned = (span.offset - self.offset) % BLOCK == 0
        if sys.platform != "linux" or isinstance(span.file, VirtualFile) or length <= 0 or not is_aligned:
            return nothing
        source = sources.descriptor(span.file)
        request = struct.pack("qQQQ", source, span.offset + start, length, self.offset + start)
        try:
            fcntl.ioctl(self._descriptor, _FICLONERANGE, request)
        except OSError:  # another file system, or one without reflink: every byte is written instead
            return nothing
        return range(start, start + length)

    def _turn_window(self) -> None:
        """Start writing back the current window; wait for the previous one and drop its pages."""
        current = (self._started, self.offset - self._started)
        _sync_range(self._descriptor, *current, _SYNC_WRITE)
        if self._previous:
            _sync_range(self._descriptor, *self._previous, _SYNC_WAIT_BEFORE | _SYNC_WRITE | _SYNC_WAIT_AFTER)
            os.posix_fadvise(self._descriptor, *self._previous, os.POSIX_FADV_DONTNEED)
        self._previous, self._started = current, self.offset

    def _drop_source(self, sources: Sources, span: Span, done: int) -> None:
        """Drop the pages of the source's last window once it is read, or once the span is."""
        at_boundary = done % _WINDOW == 0 or done == span.size
        if self._drop_behind and at_boundary and not isinstance(span.file, VirtualFile):
            start = (done - 1) // _WINDOW * _WINDOW
            descriptor = sources.descriptor(span.file)
            os.posix_fadvise(descriptor, span.offset + start, done - start, os.POSIX_FADV_DONTNEED)


def _read_at(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    content = os.pread(descriptor, len(view), offset)  # macOS
    view[: len(content)] = content
    return len(content)


def _load_sync_range() -> Callable[[int, int, int, int], object] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_SYNC_FILE_RANGE = _load_sync_range()


def _sync_range(descriptor: int, offset: int, size: int, flags: int) -> None:
    if _SYNC_FILE_RANGE is not None and size:
        _SYNC_FILE_RANGE(descriptor, offset, size, flags)


def should_drop_behind(size: int) -> bool:
    """Return whether reading and writing `size` bytes would fill more than half of the memory with pages."""
    return hasattr(os, "posix_fadvise") and 4 * size > _available_memory()


def _available_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
