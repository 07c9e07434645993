"""Ordinary files: what of a checkpoint is opened at all, how it was when it was, and the JSON in it.

A checkpoint is a directory that somebody else has filled. What is read of it lies in it (or is a blob of the Hub's
cache, to which a snapshot links) and is an ordinary file: no link that leads elsewhere, no FIFO that waits for ever, no
device. JSON is small, not nested without end, and holds no half characters, so that what reads or prints it later can.

    look(path, root)         refuse anything else; how the file is now
    read_json(path)          a JSON object
    check_unchanged(states)  refuse a source that something else has written to meanwhile
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mha2gqa.errors import CheckpointError, visible

_LARGEST_JSON = 64 << 20
_DEEPEST_JSON = 100
_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True)
class State:
    """How a file was when it was read."""

    size: int
    changed: int
    """Time of its last change, ns."""

    @classmethod
    def of(cls, status: os.stat_result) -> "State":
        """Return the state that a file has."""
        return cls(status.st_size, status.st_mtime_ns)


def look(path: Path, root: Path) -> State:
    """Refuse what is not to be opened, and return how the file is.

    Args:
        path: The file.
        root: The checkpoint's directory, which it has to lie in.

    Raises:
        FileNotFoundError: There is nothing.
        CheckpointError: It is no ordinary file, a link out of the checkpoint or to nowhere, a pointer of git-lfs, or
            cannot be reached.
    """
    try:
        real = Path(os.path.realpath(path))
        if not _belongs(real, Path(os.path.realpath(root))):
            raise _outside(path, real, root)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
            raise CheckpointError(f"{path} is {kind}", expected="an ordinary file", remedy="Take it away")
        if status.st_size <= _LARGEST_POINTER:
            _refuse_pointer(path)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which is not there",
                expected="an ordinary file",
                remedy="Restore the file, or download it again",
            ) from error
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    return State.of(status)


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the refusal of a file that cannot be opened or read, which does not mean that it is damaged."""
    is_forbidden = isinstance(error, PermissionError)
    return CheckpointError(
        f"{path} cannot be opened: {error.strerror}",
        expected="files that this account may read" if is_forbidden else "",
        remedy="Check its permissions, and those of the directories above it" if is_forbidden else "Check the disk",
    )


def _belongs(real: Path, root: Path) -> bool:
    """Whether a file lies in a checkpoint, or among the blobs of the Hub's cache where that is a snapshot of it."""
    is_blob = root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"
    return is_blob or root in real.parents


def _outside(path: Path, real: Path, root: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} leads to {real}, outside of {root}",
        expected="files of the checkpoint itself: a link could name any file of this machine",
        remedy="If it is meant, put the file itself in the place of the link (cp -rL copies so)",
    )


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return
    raise CheckpointError(
        f"{path} is a pointer of git-lfs, which stands for a file that was not downloaded",
        expected="the file itself",
        remedy="Run `git lfs pull` in the repository, or download it with `hf download`",
    )


def check_unchanged(states: Mapping[Path, State]) -> None:
    """Refuse files that are not what they were when they were read.

    Raises:
        CheckpointError: One has changed, or is gone.
    """
    for path, before in states.items():
        try:
            changed = "has changed" if State.of(path.stat()) != before else ""
        except OSError:
            changed = "has vanished"
        if changed:
            raise CheckpointError(
                f"{path} {changed} while it was read",
                expected="a checkpoint that nothing else writes to",
                remedy="Wait until it is finished, and run the command again",
            )


def read_json(path: Path, root: Path | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        root: The checkpoint's directory, where that is not the file's own.

    Raises:
        CheckpointError: The file is missing, is not JSON, or holds no object.
    """
    content = load_json(path, root or path.parent)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}", expected="a JSON object")
    return content


def load_json(path: Path, root: Path) -> Any:
    """Read a JSON value.

    Raises:
        CheckpointError: The file is missing, or is not JSON.
    """
    try:
        size = look(path, root).size
        if size > _LARGEST_JSON:
            raise ValueError(f"it has {size:,} bytes, more than {_LARGEST_JSON:,}")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=each_once)
        _check_plain(content, text)
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}",
            expected="a directory as save_pretrained writes it: config.json beside the weights",
            remedy="Name the directory that holds it",
        ) from None
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            expected="a JSON object",
            remedy="Restore the file, or download it again",
        ) from error
    return content


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; for `json.loads`, which would take the last of two values of one key, as others do not.

    Raises:
        ValueError: A key stands twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it holds the key {visible(twice)!r} twice, and readers differ in which they take")
    return content


def _check_plain(content: Any, text: str) -> None:
    """Refuse what Python reads and cannot write again, or follows only to a certain depth."""
    if text.count("[") + text.count("{") > _DEEPEST_JSON and depth(content) > _DEEPEST_JSON:
        raise ValueError(f"it is nested more than {_DEEPEST_JSON} deep")
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False).encode()


def depth(content: Any) -> int:
    """Return how deep lists and objects lie in one another."""
    level, deep = [content], 0
    while level := [one for one in level if isinstance(one, (dict, list))]:
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        deep += 1
    return deep


def made_visible(content: Any) -> Any:
    """Return plain JSON values with the strings, also those that are keys, as `visible` writes them."""
    if isinstance(content, dict):
        return {visible(key): made_visible(value) for key, value in content.items()}
    if isinstance(content, list):
        return [made_visible(value) for value in content]
    return visible(content) if isinstance(content, str) else content
