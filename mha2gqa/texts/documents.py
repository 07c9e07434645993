"""Reads documents, one string after another, and pairs of a source and a target, what an encoder-decoder learns from.

A plain text file is one document; a long one is cut at line ends into documents of about a megabyte.
Of a table (jsonl, csv, parquet) or a Hub data set each row is one document, in one text column, or one pair, in two; a
row without one of the two is left out (`tables.py` reads them, `columns.py` chooses).
Everything is streamed, in the order in which it was named.

    notes.txt   rows.jsonl   rows.parquet   org/name   org/name@revision:config:split

No tokens here (`blocks.py`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mha2gqa.errors import TextError
from mha2gqa.texts.columns import choose_column, choose_pair
from mha2gqa.texts.tables import Purpose, check_exists, empty, is_table, read_rows, text_of, undecodable

_OPTIONS = ("--source-column", "--target-column")
_CHUNK = 1 << 20
"""Characters of one document of a long plain text file, about."""


def read_documents(data: Sequence[str], column: str | None = None, purpose: Purpose = "evaluation") -> Iterator[str]:
    """Yield every document that is not empty, in the order of `data`.

    Args:
        data: Paths of files, or ids of Hub data sets.
        column: Column of tables that holds the text; None takes `text`, else the only one with documents.
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
    first, rows = read_rows(name, purpose)
    if not first:
        return
    chosen = choose_column(name, first, column)
    for row in rows:
        yield text_of(name, row, chosen)


def _plain(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            lines: list[str] = []
            size = 0
            while line := file.readline(_CHUNK):  # a longer one is cut
                lines.append(line)
                size += len(line)
                if size > _CHUNK:
                    yield "".join(lines)
                    lines, size = [], 0
            yield "".join(lines)
    except UnicodeDecodeError as error:
        raise undecodable(str(path), error) from error
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions") from error


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
    first, rows = read_rows(name, purpose)
    if not first:
        return
    chosen = choose_pair(name, first, columns)
    for row in rows:
        yield Pair(*(text_of(name, row, *one) for one in zip(chosen, _OPTIONS, strict=True)))
