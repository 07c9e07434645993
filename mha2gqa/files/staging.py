"""An output directory that appears at once and whole, or not at all.

Everything is written into a working directory beside the destination (`working.py`), synced, and renamed. A crash at
any moment leaves at most that hidden directory, `.<name>.partial`, whose name no one takes for a checkpoint's; the next
run clears it away. An output that is replaced lies in there while the new one takes its place, and is put back if that
does not happen.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mha2gqa.errors import Interrupted, Mha2GqaError, OutputError, going_on, is_text
from mha2gqa.files.reader import RECORD
from mha2gqa.files.working import check_ours, claimed, clear, has_links, remove, working_directory


def check_output(output: Path, source: Path, size: int, *, force: bool) -> None:
    """Refuse an output that cannot or should not be written, before anything is.

    Args:
        output: The directory to create.
        source: The directory that is read.
        size: Bytes that will be written.
        force: Whether an output of an earlier run may be replaced.

    Raises:
        OutputError: It exists, lies inside the source or around it, or does not fit on the disk, or something that is
            not ours lies where it would be made.
    """
    with refusals(output):
        _check_place(output, source, size, force=force)


def _check_place(output: Path, source: Path, size: int, *, force: bool) -> None:
    target, origin = output.resolve(), source.resolve()
    if not is_text(target):
        raise OutputError(
            f"The path {str(target)!r} is not UTF-8", expected="names that are text", remedy="Choose another with -o"
        )
    if target == origin or origin in target.parents or target in origin.parents:
        raise OutputError(
            f"The output {output} and the source {source} lie inside one another",
            expected="a directory apart from the source",
            remedy="Choose another with -o",
        )
    if output.is_symlink() or output.exists():
        _check_replaceable(output, force=force)
    parent = next(folder for folder in target.parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise OutputError(
            f"Cannot write into {parent}",
            expected="a directory with write permission",
            remedy="Choose another with -o",
        )
    check_ours(working_directory(output, "partial"))
    free = shutil.disk_usage(parent).free
    if size > free:
        raise OutputError(
            f"The output needs {size:,} bytes and {parent} has {free:,} free",
            remedy="Free some space, or choose another disk with -o",
        )


def _check_replaceable(output: Path, *, force: bool) -> None:
    is_ours = output.is_dir() and not output.is_symlink() and (output / RECORD).is_file()
    is_empty = output.is_dir() and not output.is_symlink() and not any(output.iterdir())
    if is_empty or (force and is_ours):
        return
    if force:
        raise OutputError(
            f"{output} exists and was not made by mha2gqa (it has no {RECORD})",
            expected="an output of an earlier run; --force replaces nothing else",
            remedy="Remove it yourself, or choose another with -o",
        )
    raise OutputError(
        f"{output} exists",
        expected="a directory that does not",
        remedy="Choose another with -o, or replace it with --force" if is_ours else "Choose another with -o",
    )


@contextlib.contextmanager
def staged(output: Path, *, force: bool) -> Iterator[Path]:
    """Give a directory to write into, and put it in the place of `output` when the block succeeds.

    Raises:
        OutputError: The disk is full, permission is missing, another run writes the same output, or
            something that may not be replaced has appeared there meanwhile.
    """
    target = output.resolve()
    with refusals(output), claimed(working_directory(output, "partial"), output) as work:
        made, replaced = work / work.name, work / "replaced"  # its name is hidden in there as well
        try:
            _restore(replaced, target)
            clear(work)
            made.mkdir()
            yield made
            _sync(made)
            if target.exists():  # it may have appeared meanwhile
                _check_replaceable(output, force=force)
                target.rename(replaced)
            made.rename(target)
            _sync_one(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                _restore(replaced, target)
                remove(work)
            raise
        remove(work)


def _restore(replaced: Path, target: Path) -> None:
    """Put back an output that was to be replaced, where no other has taken its place."""
    if replaced.exists() and not os.path.lexists(target):
        replaced.rename(target)


def move(made: Path, output: Path) -> None:
    """Move a finished checkpoint out of a working directory, also to another file system.

    Raises:
        OutputError: Something is there already, or the disk refuses.
    """
    with refusals(output):
        if os.path.lexists(output):
            _check_replaceable(output, force=False)
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(output)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with staged(output, force=False) as directory:
                shutil.copytree(made, directory, dirs_exist_ok=True)
            shutil.rmtree(made)


@contextlib.contextmanager
def workspace(output: Path, fingerprint: str, *, keep: bool) -> Iterator[Path]:
    """Give a hidden directory beside `output` for intermediate results, which goes when the block succeeds.

    Args:
        output: The directory that will be created at last.
        fingerprint: What the results depend on; those of a run with another one are cleared away.
        keep: Leave the layers of a block that was interrupted or killed, or could not write, to the next run.
            A block that was refused for another reason would be refused again, and leaves nothing.

    Raises:
        OutputError: The disk is full, permission is missing, or another run makes the same output.
    """
    with refusals(output), claimed(working_directory(output, "layers"), output) as work:
        stamp = work / "fingerprint"
        try:
            with refusals(output):
                if not (keep and _is_stamped(stamp, fingerprint)) or has_links(work):
                    clear(work)
                    stamp.write_text(fingerprint, encoding="utf-8")
                yield work
        except BaseException as error:
            _leave(work, error, keep=keep)
            raise
        remove(work)


def tidy(output: Path) -> None:
    """Take away the workspace that a run left which was killed behind its last result.

    Raises:
        OutputError: As `workspace`.
    """
    if os.path.lexists(work := working_directory(output, "layers")):
        with refusals(output), claimed(work, output):
            remove(work)


def _is_stamped(stamp: Path, fingerprint: str) -> bool:
    return stamp.is_file() and stamp.read_bytes() == fingerprint.encode()


def _leave(work: Path, error: BaseException, *, keep: bool) -> None:
    """Clear a workspace away, or say where it stays: by the refusal itself, or in the place of Ctrl-C."""
    is_refused = isinstance(error, Mha2GqaError) and not isinstance(error, OutputError)
    if not keep or is_refused or not any(work.rglob("*.safetensors")):
        with contextlib.suppress(OSError):
            remove(work)
    elif isinstance(error, OutputError):
        error.kept = going_on(work)
    elif isinstance(error, KeyboardInterrupt):
        raise Interrupted(going_on(work)) from error


_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.EBUSY, errno.EXDEV, errno.ELOOP),
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_TORCH_FAILED = re.compile("PytorchStreamWriter failed|iostream error|file write failed")


@contextlib.contextmanager
def refusals(output: Path) -> Iterator[None]:
    """Turn what the disk refuses while `output` is written into an OutputError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _disk_reason(error)
        if reason is None:
            raise
        raise OutputError(
            f"Writing {output} failed: {reason}", remedy="Free some space, or choose another place with -o"
        ) from error


def _disk_reason(error: Exception) -> str | None:
    """Return what the disk refused, where it is that; libraries tell it in words of their own."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and not isinstance(error, OSError) and _TORCH_FAILED.search(str(error)):
        return "a file was not taken whole"
    if number is None and (match := _OS_ERROR.search(str(error))):
        number = int(match[1] or match[2])
    return os.strerror(number) if number in _DISK_ERRORS else None


def _sync(directory: Path) -> None:
    for root, _, files in os.walk(directory):
        for name in files:
            _sync_one(Path(root) / name)
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
