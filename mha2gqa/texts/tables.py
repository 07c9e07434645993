"""Rows of tables: jsonl, csv and parquet files, and Hub data sets, streamed by the `datasets` library.

    rows.jsonl   rows.parquet   org/name   org/name@revision:config:split

A column inside another is named with a dot: `translation.en`. What the columns hold is known to `documents.py`,
which reads them.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mha2gqa.errors import TextError

Purpose: TypeAlias = Literal["evaluation", "calibration"]

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_TEXTS = (".txt", ".md", ".text")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:]*))?(?::(?P<split>[^:]+))?")
_PREFERRED = {
    "evaluation": ("test", "validation", "dev", "train"),
    "calibration": ("train", "validation", "dev", "test"),
}
"""Splits of a Hub data set, the one to take first."""


def check_exists(data: Sequence[str]) -> None:
    """Refuse files that are not there.

    Raises:
        TextError: One is missing, empty, or a directory.
    """
    for name in data:
        path = Path(name).expanduser()
        if path.is_file() and path.stat().st_size == 0:
            raise empty(name)
        if path.is_dir():
            raise TextError(f"{name} is a directory", expected="files of text", remedy=f"Name its files: {name}/*")
        looks_like_a_file = path.suffix in (*_BUILDERS, *_TEXTS) or not _HUB.fullmatch(name)
        if looks_like_a_file and not path.is_file():
            raise TextError(
                f"There is no file {name!r}",
                expected="a text, jsonl, csv or parquet file, or a Hub data set "
                "(org/name, org/name@revision:config:split)",
                remedy="Check the path",
            )


def is_table(name: str) -> bool:
    """Return whether what the user named is a table rather than a file of plain text."""
    path = Path(name).expanduser()
    return not path.is_file() or path.suffix in _BUILDERS


def read_rows(name: str, purpose: Purpose) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table.

    Args:
        name: As the user named it.
        purpose: Which split of a Hub data set to take when none is named.

    Raises:
        TextError: It is unreadable.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    path = Path(name).expanduser()
    rows = _open_local(name, path) if path.is_file() else _open_remote(name, purpose)
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise undecodable(name, error) from error
    except (DatasetsError, OSError, ValueError, HTTPError) as error:
        raise _unreadable(name, error) from error


def value_of(row: dict[str, Any], column: str) -> Any:
    """Return the value of a column, or of one inside another (`translation.en`).

    Raises:
        KeyError: There is none.
    """
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    if not dot or not isinstance(row.get(outer), dict):
        raise KeyError(column)
    return value_of(row[outer], inner)


def text_of(name: str, row: dict[str, Any], column: str, option: str = "--column") -> str:
    """Return the text in a column, empty where there is none.

    Args:
        name: Of the table.
        row: One of its rows.
        column: That `value_of` finds.
        option: Which chooses the column.

    Raises:
        TextError: It holds something else, or nothing.
    """
    text = value_of(row, column)
    if text is not None and not isinstance(text, str):
        raise TextError(
            f"Column {column!r} of {name} holds {type(text).__name__}",
            expected="strings",
            remedy=f"Choose another with {option}",
        )
    return text or ""


def empty(name: str) -> TextError:
    """Return the refusal of data without text."""
    return TextError(f"{name} holds no text", expected="at least one document", remedy="Name another with --data")


def undecodable(name: str, error: Exception) -> TextError:
    """Return the refusal of what is not UTF-8."""
    return TextError(
        f"{name} cannot be decoded ({error})",
        expected="text in UTF-8, or a table whose name ends in .jsonl, .csv or .parquet",
        remedy="Convert it: iconv -f <encoding> -t utf-8",
    )


def _open_local(name: str, path: Path) -> Any:
    from datasets import load_dataset, logging

    logging.set_verbosity(logging.CRITICAL)  # it logs what it also raises
    files = {"train": [str(path)]}
    try:
        return load_dataset(_BUILDERS[path.suffix], data_files=files, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _open_remote(name: str, purpose: Purpose) -> Any:
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    match = _HUB.fullmatch(name)
    if match is None:
        raise TextError(f"{name!r} is neither a file nor a Hub data set", expected="org/name@revision:config:split")
    try:
        splits = load_dataset(match["name"], match["config"] or None, revision=match["revision"], streaming=True)
    # Unknown, gated, offline, without a connection, of several configs: all end here, told apart by their text.
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise TextError(
            f"The data set {name} cannot be opened: {' '.join(str(error).split())[:300]}",
            expected="a Hub data set that this account can read (org/name, org/name@revision:config:split)",
            remedy="Check the name and the network; for a gated one ask for access, then run `hf auth login`",
        ) from error
    split = match["split"] or next((one for one in _PREFERRED[purpose] if one in splits), next(iter(splits)))
    if split not in splits:
        raise TextError(f"{name} has no split {split!r}", expected=f"one of {', '.join(splits)}")
    return splits[split]


def _unreadable(name: str, error: Exception) -> TextError:
    cause = error.__cause__ or error
    reason = str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
    return TextError(
        f"{name} cannot be read: {reason}",
        expected="a well-formed file, one row a document",
        remedy="Repair it, or name another with --data",
    )
