"""What the report of a verb is made of when it is written for people: facts, tables, lines. The console prints them.

The words themselves are in `verbs/<verb>/words.py`; pages place the same tables.
"""

from dataclasses import dataclass

Row = tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Names and what is to be said of each, which is broken between words where the terminal ends."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str = ""
    is_number: bool = False
    folds: bool = False
    """Whether what is too long for it goes on in the line below; else it is cut."""


@dataclass(frozen=True)
class Section:
    """A table; without any title there is no line of titles."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    name: str = ""
    bold: int | None = None
    """Row that stands out."""


class Paragraph(str):
    """A text that is broken between words where the terminal ends. Other texts are lines, however long."""

    __slots__ = ()


Part = Facts | Section | str


def numbers(first: str, *others: str) -> tuple[Column, ...]:
    """Return the columns of a name and of numbers."""
    return (Column(first), *(Column(title, is_number=True) for title in others))
