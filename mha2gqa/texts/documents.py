"""Reads documents, one string after another: plain text, tables (jsonl, csv, parquet), Hub data sets.

A plain text file is one document; a long one is cut at line ends into documents of about a megabyte.
Of a table or a data set each row is one document, in one text column. Everything is streamed, in the
order in which it was named, and read by the `datasets` library where it is not plain text.

    notes.txt   rows.jsonl   rows.parquet   org/name   org/name@revision:config:split

No tokens here (`blocks.py`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_CHUNK = 1 << 20
"""Characters of one document of a long plain text file, about."""


@dataclass(frozen=True)
class _Table:
    """Rows that are still to be read."""

    name: str
    """As the user named it."""
    rows: Any
    """A streaming data set."""


def read_documents(data: Sequence[str], column: str | None = None, purpose: Purpose = "evaluation") -> Iterator[str]:
    """Yield every document that is not empty, in the order of `data`.

    Args:
        data: Paths of files, or ids of Hub data sets.
        column: Column of tables that holds the text; None takes `text`, else the only one with strings.
        purpose: Which split of a Hub data set to take when none is named.

    Raises:
        TextError: A file or data set is missing, unreadable or empty, or has no such column. Files that do not
            exist are refused before the first document; the rest where they are read.
    """
    for name in data:
        _check_exists(name)
    for name in data:
        found = False
        for document in _documents(name, column, purpose):
            if document.strip():
                found = True
                yield document
        if not found:
            raise _empty(name)


def _empty(name: str) -> TextError:
    return TextError(f"{name} holds no text", expected="at least one document", remedy="Name another with --data")


def _check_exists(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_file():
        if path.stat().st_size == 0:
            raise _empty(name)
        return
    if path.is_dir():
        raise TextError(f"{name} is a directory", expected="files of text", remedy=f"Name its files: {name}/*")
    looks_like_a_file = path.suffix in (*_BUILDERS, *_TEXTS) or not _HUB.fullmatch(name)
    if looks_like_a_file:
        raise TextError(
            f"There is no file {name!r}",
            expected="a text, jsonl, csv or parquet file, or a Hub data set (org/name, org/name@revision:config:split)",
            remedy="Check the path",
        )


def _documents(name: str, column: str | None, purpose: Purpose) -> Iterator[str]:
    path = Path(name).expanduser()
    if not path.is_file():
        yield from _texts(_open_remote(name, purpose), column)
    elif path.suffix in _BUILDERS:
        yield from _texts(_open_local(name, path), column)
    else:
        yield from _plain(path)


def _plain(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(_CHUNK):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise _undecodable(str(path), error) from error
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions") from error


def _undecodable(name: str, error: Exception) -> TextError:
    return TextError(
        f"{name} cannot be decoded ({error})",
        expected="text in UTF-8, or a table whose name ends in .jsonl, .csv or .parquet",
        remedy="Convert it: iconv -f <encoding> -t utf-8",
    )


def _open_local(name: str, path: Path) -> _Table:
    from datasets import load_dataset, logging

    logging.set_verbosity(logging.CRITICAL)  # it logs what it also raises
    files = {"train": [str(path)]}
    try:
        return _Table(name, load_dataset(_BUILDERS[path.suffix], data_files=files, split="train", streaming=True))
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _open_remote(name: str, purpose: Purpose) -> _Table:
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

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
    return _Table(name, splits[split])


def _texts(table: _Table, column: str | None) -> Iterator[str]:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    chosen = None
    try:
        for row in table.rows:
            chosen = chosen or _choose(table.name, row, column)
            text = row[chosen]
            if text is not None and not isinstance(text, str):
                raise TextError(
                    f"Column {chosen!r} of {table.name} holds {type(text).__name__}",
                    expected="strings",
                    remedy="Choose another with --column",
                )
            yield text or ""
    except UnicodeDecodeError as error:
        raise _undecodable(table.name, error) from error
    except (DatasetsError, OSError, ValueError, HTTPError) as error:
        raise _unreadable(table.name, error) from error


def _choose(name: str, row: dict[str, Any], column: str | None) -> str:
    if column is not None and column in row:
        return column
    there = ", ".join(row)
    if column is not None:
        raise TextError(f"{name} has no column {column!r}", expected=f"one of {there}", remedy="Choose with --column")
    strings = [key for key, value in row.items() if isinstance(value, str)]
    if "text" in row:
        return "text"
    if len(strings) != 1:
        raise TextError(
            f"{name} has no column 'text' and {len(strings)} columns of strings",
            expected="one column to read",
            remedy=f"Choose with --column; there are {there}",
        )
    return strings[0]


def _unreadable(name: str, error: Exception) -> TextError:
    return TextError(
        f"{name} cannot be read: {_first_line(error)}",
        expected="a well-formed file, one row a document",
        remedy="Repair it, or name another with --data",
    )


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
