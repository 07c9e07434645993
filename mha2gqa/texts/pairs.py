"""Reads pairs of a source and a target, what an encoder-decoder learns from: two text columns of a table.

`tables.py` reads the rows, streamed, in the order in which the tables were named. A row without one of the two is left
out. No tokens here.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mha2gqa.errors import TextError
from mha2gqa.texts.columns import choose_pair
from mha2gqa.texts.tables import Purpose, check_exists, empty, is_table, read_rows, text_of

_OPTIONS = ("--source-column", "--target-column")


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
