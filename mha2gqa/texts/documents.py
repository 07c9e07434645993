"""Reads documents, one string after another, and pairs of a source and a target, what an encoder-decoder learns from.

A plain text file is one document; a long one is cut at line ends into documents of about a megabyte. Of a table
(jsonl, csv, parquet) or a Hub data set each row is one document, in one text column, or one pair, in two; a row without
one of the two is left out. `tables.py` reads the rows. Everything is streamed, in the order in which it was named.

    notes.txt   rows.jsonl   rows.parquet   org/name   org/name@revision:config:split

No tokens here (`blocks.py`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mha2gqa.errors import TextError
from mha2gqa.texts.tables import Purpose, check_exists, empty, is_table, read_rows, text_of, undecodable, value_of

_CHUNK = 1 << 20
"""Characters of one document of a long plain text file, about."""
_OPTIONS = ("--source-column", "--target-column")
_USUAL = ("source", "target")


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
    check_exists(data)
    for name in data:
        found = False
        for document in _documents(name, column, purpose):
            if document.strip():
                found = True
                yield document
        if not found:
            raise empty(name)


def _documents(name: str, column: str | None, purpose: Purpose) -> Iterator[str]:
    if not is_table(name):
        yield from _plain(Path(name).expanduser())
        return
    chosen = None
    for row in read_rows(name, purpose):
        chosen = chosen or _choose_column(name, row, column)
        yield text_of(name, row, chosen)


def _plain(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(_CHUNK):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise undecodable(str(path), error) from error
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions") from error


def _choose_column(name: str, row: dict[str, Any], column: str | None) -> str:
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


class Pair(NamedTuple):
    """What is read, and what is to be answered."""

    source: str
    target: str


def read_pairs(
    data: Sequence[str], columns: tuple[str | None, str | None] = (None, None), purpose: Purpose = "evaluation"
) -> Iterator[Pair]:
    """Yield every pair, in the order of `data`.

    Args:
        data: Paths of tables, or ids of Hub data sets.
        columns: Of the source and of the target; None takes `source` and `target`, else the only columns with strings
            that are left, in their order.
        purpose: Which split of a Hub data set to take when none is named.

    Raises:
        TextError: A file or data set is missing, unreadable, empty or plain text, or has no such columns. Files that do
            not exist or are plain text are refused before the first pair; the rest where they are read.
    """
    check_exists(data)
    for name in data:
        if not is_table(name):
            raise TextError(
                f"{name} is plain text, and an encoder-decoder learns from pairs",
                expected="a table (jsonl, csv, parquet, a Hub data set) with a column of sources and one of targets",
                remedy=f"Name its columns with {' and '.join(_OPTIONS)}",
            )
    for name in data:
        found = False
        for pair in _pairs(name, columns, purpose):
            if pair.source.strip() and pair.target.strip():
                found = True
                yield pair
        if not found:
            raise empty(name)


def _pairs(name: str, columns: tuple[str | None, str | None], purpose: Purpose) -> Iterator[Pair]:
    chosen = None
    for row in read_rows(name, purpose):
        chosen = chosen or _choose_columns(name, row, columns)
        yield Pair(*(text_of(name, row, *one) for one in zip(chosen, _OPTIONS, strict=True)))


def _choose_columns(name: str, row: dict[str, Any], columns: tuple[str | None, str | None]) -> list[str]:
    """Return the columns of a table, found in its first row."""
    for column, option in zip(columns, _OPTIONS, strict=True):
        if column is not None and not _has(row, column):
            raise TextError(
                f"{name} has no column {column!r}", expected=f"one of {', '.join(row)}", remedy=f"Choose with {option}"
            )
    named = [column or (usual if usual in row else None) for column, usual in zip(columns, _USUAL, strict=True)]
    left = [key for key, value in row.items() if isinstance(value, str) and key not in named]
    if None in named and len(left) != named.count(None):
        raise TextError(
            f"{name} has no columns 'source' and 'target', and {len(left)} columns of strings",
            expected="a column of sources and one of targets",
            remedy=f"Choose with {' and '.join(_OPTIONS)}; there are {', '.join(row)}",
        )
    return [column or left.pop(0) for column in named]


def _has(row: dict[str, Any], column: str) -> bool:
    try:
        value_of(row, column)
    except KeyError:
        return False
    return True
