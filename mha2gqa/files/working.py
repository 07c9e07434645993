"""Working directories beside an output: hidden, locked, and ours by a mark.

Whatever a run needs beside its output lies in one of them, and nothing outside them is ever cleared away. A directory
is ours if it is empty or holds our mark; anything else in its place, a link above all, is refused and stays as it is.
The mark is the first thing in and the last thing out, so that what a kill leaves is ours as well.

`replace_file` is for single files: they appear at once and whole, and through no link.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mha2gqa.errors import CheckpointError, OutputError

MARK = ".mha2gqa-working-directory"
"""Name of the file that says whose a directory is."""

_CONTENT = b"This directory was made by mha2gqa, which may clear it away.\n"


def working_directory(output: Path, kind: str) -> Path:
    """Return where a run for an output works: `.<name>.<kind>` beside it."""
    target = output.resolve()  # `.` has no name of its own
    return target.with_name(f".{target.name}.{kind}")


def check_ours(directory: Path) -> None:
    """Refuse what somebody else has put in the place of a directory of ours.

    Raises:
        OutputError: It is a link, or no directory, or holds something without our mark.
    """
    try:
        kind = directory.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(kind):
        raise _foreign(directory, f"is a link to {directory.readlink()}, which is not followed")
    if not stat.S_ISDIR(kind):
        raise _foreign(directory, "is no directory")
    if not _is_ours(directory):
        raise _foreign(directory, f"was not made by mha2gqa (it has no {MARK})")


def _foreign(directory: Path, problem: str) -> OutputError:
    return OutputError(
        f"{directory} {problem}",
        expected="nothing there, or what an earlier run has left",
        remedy="Move it away, or choose another place with -o",
    )


def _is_ours(directory: Path) -> bool:
    entries = list(directory.iterdir())
    mark = directory / MARK
    if mark not in entries:
        return not entries
    status = mark.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > len(_CONTENT):
        return False
    content = mark.read_bytes()
    return content == _CONTENT or (len(entries) == 1 and _CONTENT.startswith(content))  # cut off by a crash


def refuse_unfinished(directory: Path) -> None:
    """Refuse to take for a checkpoint what a run has left that did not finish, or is still at work on.

    Raises:
        CheckpointError: The directory lies in one of ours.
    """
    for folder in (directory, *directory.resolve().parents[:2]):
        if (folder / MARK).is_file():
            raise CheckpointError(
                f"{directory} is what a run of mha2gqa works with, and is not finished",
                expected="a checkpoint",
                remedy="Wait for that run, or run its command again, and name its output",
            )


def make_ours(directory: Path) -> None:
    """Make a directory, or take over one of ours.

    Raises:
        OutputError: As `check_ours`.
    """
    check_ours(directory)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        (directory / MARK).write_bytes(_CONTENT)
    except OSError:
        with contextlib.suppress(OSError):
            remove(directory)
        raise


@contextlib.contextmanager
def claimed(directory: Path, output: Path) -> Iterator[Path]:
    """Have a working directory for oneself while the block runs; it stays afterwards unless `remove` takes it away.

    Args:
        directory: The directory; those above it are made, and go again if the block fails.
        output: What is made in it, for messages.

    Raises:
        OutputError: It is somebody else's, or another run has it.
    """
    with _parents(directory):
        descriptor = _lock(directory, output)
        try:
            make_ours(directory)
            yield directory
        finally:
            os.close(descriptor)


def _lock(directory: Path, output: Path) -> int:
    """Return a descriptor of a directory that no other run works in."""
    while True:
        check_ours(directory)
        directory.mkdir(exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), directory.lstat()):
                return descriptor
        except FileNotFoundError:
            pass  # a run that has just finished took it away
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise OutputError(
                    f"Another run is writing {output}", remedy="Wait for it, or choose another with -o"
                ) from error
            raise
        os.close(descriptor)


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


def clear(directory: Path) -> None:
    """Remove everything in a directory of ours but its mark; links in it go, and what they name stays."""
    for entry in directory.iterdir():
        if entry.name == MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def remove(directory: Path) -> None:
    """Remove a directory of ours, the mark last."""
    clear(directory)
    (directory / MARK).unlink(missing_ok=True)
    directory.rmdir()


def has_links(directory: Path) -> bool:
    """Return whether there is a link anywhere in a directory; we make none."""
    return any(
        (Path(root) / name).is_symlink() for root, folders, files in os.walk(directory) for name in (*folders, *files)
    )


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is as before or as it is now, whatever happens; a link there is replaced, not followed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, 0o666 & ~_umask())
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
