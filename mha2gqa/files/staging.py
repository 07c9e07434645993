"""An output directory that appears at once and whole, or not at all.

Everything is written into `.<name>.partial` beside the destination, synced, and renamed. A crash at
any moment leaves at most that hidden directory, whose name no one takes for a checkpoint's and which
lacks its config.json until the very end; the next run clears it away. A lock on it keeps two runs
from writing the same output.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mha2gqa.errors import Interrupted, Mha2GqaError, OutputError
from mha2gqa.files.reader import RECORD


def check_output(output: Path, source: Path, size: int, *, force: bool) -> None:
    """Refuse an output that cannot or should not be written, before anything is.

    Args:
        output: The directory to create.
        source: The directory that is read.
        size: Bytes that will be written.
        force: Whether an output of an earlier run may be replaced.

    Raises:
        OutputError: It exists, lies inside the source or around it, or does not fit on the disk.
    """
    target, origin = output.resolve(), source.resolve()
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
    target = output.resolve()  # `.` has no name of its own
    partial, replaced = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "replaced"))
    with refusals(output), _parents(target):
        partial.mkdir(exist_ok=True)
        with locked(partial, output):
            clear(partial)
            try:
                yield partial
                _sync(partial)
                if target.exists():  # it may have appeared meanwhile
                    _check_replaceable(output, force=force)
                _move_into_place(partial, target, replaced)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise


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
    target = output.resolve()
    work = target.with_name(f".{target.name}.layers")
    with refusals(output), _parents(target):
        work.mkdir(exist_ok=True)
        with locked(work, output):
            stamp = work / "fingerprint"
            if not (keep and stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint):
                clear(work)
                stamp.write_text(fingerprint, encoding="utf-8")
            try:
                with refusals(output):
                    yield work
            except BaseException as error:
                _leave(work, error, keep=keep)
                raise
            shutil.rmtree(work)


def _leave(work: Path, error: BaseException, *, keep: bool) -> None:
    """Clear a workspace away, or say where it stays: by the refusal itself, or in the place of Ctrl-C."""
    is_refused = isinstance(error, Mha2GqaError) and not isinstance(error, OutputError)
    if not keep or is_refused or not any(work.rglob("*.safetensors")):
        shutil.rmtree(work, ignore_errors=True)
    elif isinstance(error, OutputError):
        error.kept = str(work)
    elif isinstance(error, KeyboardInterrupt):
        raise Interrupted(str(work)) from error


_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG),
}


@contextlib.contextmanager
def refusals(output: Path) -> Iterator[None]:
    """Turn what the disk refuses while `output` is written into an OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise OutputError(
            f"Writing {output} failed: {error.strerror}",
            remedy="Free some space, or choose another place with -o",
        ) from error


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the directories above `path`, and take away those that are new if the block fails."""
    created = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def locked(partial: Path, output: Path) -> Iterator[None]:
    """Hold a lock on a directory, so that no other run works in it.

    Raises:
        OutputError: Another run has it.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OutputError(
            f"Another run is writing {output}", remedy="Wait for it, or choose another with -o"
        ) from error
    finally:
        os.close(descriptor)


def clear(directory: Path) -> None:
    """Remove everything in a directory."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _move_into_place(partial: Path, output: Path, replaced: Path) -> None:
    if output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    try:
        partial.rename(output)
    except BaseException:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        raise
    _sync_one(output.parent)
    shutil.rmtree(replaced, ignore_errors=True)


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
