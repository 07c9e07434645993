"""Reads documents, one string after another: plain text, tables (jsonl, csv, parquet), Hub data sets.

A plain text file is one document; a long one is cut at line ends into documents of about a megabyte.
Of a table or a data set each row is one document, in one text column (`tables.py` reads them). Everything is
streamed, in the order in which it was named.

    notes.txt   rows.jsonl   rows.parquet   org/name   org/name@revision:config:split

No tokens here (`blocks.py`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mha2gqa.errors import TextError
from mha2gqa.texts.tables import Purpose, check_exists, empty, is_table, read_rows, text_of, undecodable

_CHUNK = 1 << 20
"""Characters of one document of a long plain text file, about."""


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
        chosen = chosen or _choose(name, row, column)
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
