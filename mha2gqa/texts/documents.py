"""Reads documents, one after another, and pairs of a source and a target, what an encoder-decoder learns from.

A plain text file is one document; a long one is cut at line ends into documents of about a megabyte.
Of a table (jsonl, csv, parquet, arrow), a saved or a Hub data set each row is one document (a text, or one of the forms
of `chats.py`), or one pair, in two columns; a row without one of the two is left out (`tables.py` reads them,
`columns.py` chooses). Everything is streamed, in the order in which it was named, or mixed by weight:

    notes.txt   rows.jsonl   rows.parquet   org/name   org/name@revision:config:split   chat.jsonl:3 code.parquet:1

Then characters are in that proportion as far as the text goes: it ends where one of them is used up. Texts are cut at
line ends into pieces of a page, so that a short part is mixed, too.

No tokens here (`blocks.py`).
"""

import io
from collections.abc import Callable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mha2gqa.errors import TextError
from mha2gqa.texts.chats import Document, record_of
from mha2gqa.texts.columns import choose_forms, choose_pair, form_of
from mha2gqa.texts.local import opened
from mha2gqa.texts.tables import Purpose, check_exists, empty, is_table, named, read_rows, text_of, undecodable

Read = TypeVar("Read", bound=Sized)

_OPTIONS = ("--source-column", "--target-column")
_CHUNK = 1 << 20
"""Characters of one document of a long plain text file, about."""
_PAGE = 4096
"""Characters of a text, about, that is mixed with others."""


def read_documents(
    data: Sequence[str],
    column: str | None = None,
    purpose: Purpose = "evaluation",
    begun: Callable[[str], None] = lambda name: None,
) -> Iterator[Document]:
    """Yield every document that is not empty, in the order of `data`, or mixed by the weights in it.

    Args:
        data: Paths of files, or ids of Hub data sets, each perhaps with a weight.
        column: Column of tables that holds the text; None takes `text`, a conversation or another form of `chats.py`,
            else the only column with documents.
        purpose: Which split of a Hub data set to take when none is named.
        begun: Told of each name, without its weight, before its first document is read.

    Raises:
        TextError: A file or data set is missing, unreadable or empty, or has no such column. Files that do not
            exist are refused before the first document; the rest where they are read.
    """
    yield from _mixed(data, lambda name: _documents(name, column, purpose), begun)


def _mixed(
    data: Sequence[str], read: Callable[[str], Iterator[Read]], begun: Callable[[str], None] = lambda name: None
) -> Iterator[Read]:
    """Yield what is read, one name after the other; by weight where there are any, 1 for names without."""
    names = [named(one) for one in data]
    check_exists([one.name for one in names])
    streams = [_not_empty(one.name, read(one.name), begun) for one in names]
    if all(one.weight is None for one in names):
        for stream in streams:
            yield from stream
        return
    weights = [one.weight or 1.0 for one in names]
    pieces = [_in_pages(stream) for stream in streams]
    taken = [0.0] * len(names)
    while True:
        least = min(range(len(names)), key=lambda number: taken[number] / weights[number])
        if (piece := next(pieces[least], None)) is None:
            return
        taken[least] += len(piece)
        yield piece


def _in_pages(stream: Iterator[Any]) -> Iterator[Any]:
    for one in stream:
        yield from pieces(one, _PAGE) if isinstance(one, str) else [one]


def pieces(document: str, size: int) -> Iterator[str]:
    """Yield the pieces of a text, of `size` characters and up to a line end behind them, but no more than as many."""
    start = 0
    while start < len(document):
        end = start + size
        line_end = document.find("\n", end, end + size)
        end = line_end + 1 if line_end >= 0 else end
        yield document[start:end]
        start = end


def _not_empty(name: str, stream: Iterator[Read], begun: Callable[[str], None]) -> Iterator[Read]:
    found = False
    begun(name)
    for one in stream:
        found = True
        yield one
    if not found:
        raise empty(name)


def _documents(name: str, column: str | None, purpose: Purpose) -> Iterator[Document]:
    if not is_table(name):
        yield from filter(str.strip, _plain(Path(name).expanduser()))
        return
    first, rows = read_rows(name, purpose)
    if not first:
        return
    forms = choose_forms(name, first, column)
    for row in rows:
        form = form_of(name, row, forms)
        if form is None:
            continue
        if form.kind != "text":
            if record := record_of(name, row, form):
                yield record
        elif (text := text_of(name, row, *form.columns)).strip():
            yield text


def _plain(path: Path) -> Iterator[str]:
    try:
        with io.TextIOWrapper(opened(path), encoding="utf-8") as file:
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
    names = [named(one).name for one in data]
    check_exists(names)
    for name in names:
        if not is_table(name):
            raise TextError(
                f"{name} is plain text, and an encoder-decoder learns from pairs",
                expected="a table (jsonl, csv, parquet, a Hub data set) with a column of sources and one of targets",
                remedy=f"Name its columns with {' and '.join(_OPTIONS)}",
            )
    yield from _mixed(data, lambda name: _pairs(name, columns, purpose))


def _pairs(name: str, columns: tuple[str | None, str | None], purpose: Purpose) -> Iterator[Pair]:
    first, rows = read_rows(name, purpose)
    if not first:
        return
    chosen = choose_pair(name, first, columns)
    for row in rows:
        pair = Pair(*(text_of(name, row, *one) for one in zip(chosen, _OPTIONS, strict=True)))
        if pair.source.strip() and pair.target.strip():
            yield pair
