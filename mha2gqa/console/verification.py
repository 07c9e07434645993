"""The report of `verify`, for people."""

from typing import TYPE_CHECKING

from rich.table import Table

from mha2gqa.console.terminal import escape, out

if TYPE_CHECKING:
    from mha2gqa.verbs.verify.outcome import Verification


def print_verification(report: "Verification") -> None:
    """Print the report of `verify`."""
    from mha2gqa.verbs.verify.words import summary

    for number, section in enumerate(summary(report)):
        table = Table(box=None, show_header=bool(section.header), padding=(0, 2, 0, 0))
        for column in range(len(section.rows[0]) if section.rows else 0):
            title = section.header[column] if section.header else ""
            is_number = section.numbers and column > 0
            table.add_column(title, justify="right" if is_number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(escape, row))
        if number:
            out.print()
        out.print(table)
