"""Text that every machine has: the source of the Python standard library that is running.

The reference checkpoint was trained on `training_files()` of the interpreter that
`scripts/train_reference.py` ran under; it never saw `held_out_files()`, a fixed list. Methods that
need calibration text take `calibration_files()`, a fixed part of the training text, so that
calibration and evaluation never overlap. Nothing is downloaded and nothing is cached.

This module does not tokenise: text in, text out.
"""

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

HELD_OUT = (
    "argparse.py",
    "calendar.py",
    "configparser.py",
    "concurrent/futures/_base.py",
    "csv.py",
    "difflib.py",
    "email/header.py",
    "fractions.py",
    "heapq.py",
    "http/cookies.py",
    "logging/config.py",
    "pickle.py",
    "queue.py",
    "selectors.py",
    "shlex.py",
    "statistics.py",
    "textwrap.py",
    "unittest/case.py",
)
"""Modules that the reference checkpoint never saw; all exist in CPython 3.11 to 3.14."""

CALIBRATION = (
    "asyncio/base_events.py",
    "asyncio/streams.py",
    "bdb.py",
    "cmd.py",
    "codecs.py",
    "collections/__init__.py",
    "datetime.py",
    "dataclasses.py",
    "email/_header_value_parser.py",
    "ftplib.py",
    "http/client.py",
    "inspect.py",
    "mailbox.py",
    "optparse.py",
    "os.py",
    "pdb.py",
    "random.py",
    "socket.py",
    "subprocess.py",
    "tarfile.py",
    "threading.py",
    "typing.py",
    "urllib/request.py",
    "zipfile.py",
)
"""A fixed part of the training text, about 1.2 MB; a module that this Python lacks is left out."""

_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3")
"""Packages that are absent from some distributions, or that hold tables instead of code."""


def standard_library() -> Path:
    """Return the directory of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def held_out_files() -> list[Path]:
    """Return the files of `HELD_OUT` that this Python has, in the list's order."""
    return _existing(HELD_OUT)


def calibration_files() -> list[Path]:
    """Return the files of `CALIBRATION` that this Python has, in the list's order."""
    return _existing(CALIBRATION)


def training_files() -> list[Path]:
    """Return every standard-library source file outside `HELD_OUT`, sorted by path."""
    root = standard_library()
    held_out = {root / name for name in HELD_OUT}
    files = (path for path in root.rglob("*.py") if not _is_left_out(path.relative_to(root)))
    return sorted(path for path in files if path not in held_out)


def read_documents(files: Iterable[Path]) -> Iterator[str]:
    """Yield the text of each file that is UTF-8 and not empty."""
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield text


def _existing(names: Iterable[str]) -> list[Path]:
    root = standard_library()
    return [root / name for name in names if (root / name).is_file()]


def _is_left_out(relative: Path) -> bool:
    return any(part in _LEFT_OUT for part in relative.parts)
