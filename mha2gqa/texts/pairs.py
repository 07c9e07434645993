"""Reads pairs of a source and a target, what an encoder-decoder learns from: two text columns of a table.

`tables.py` reads the rows, streamed, in the order in which the tables were named. A row without one of the two is left
out. No tokens here.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mha2gqa.errors import TextError
from mha2gqa.texts.tables import Purpose, check_exists, empty, is_table, read_rows, text_of, value_of

_OPTIONS = ("--source-column", "--target-column")
_USUAL = ("source", "target")


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
        chosen = chosen or _choose(name, row, columns)
        yield Pair(*(text_of(name, row, *one) for one in zip(chosen, _OPTIONS, strict=True)))


def _choose(name: str, row: dict[str, Any], columns: tuple[str | None, str | None]) -> list[str]:
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
