"""The report of `bench`, for people."""

from typing import TYPE_CHECKING

from rich.table import Table

from mha2gqa.console.terminal import escape, out, plain_table

if TYPE_CHECKING:
    from mha2gqa.verbs.bench.outcome import BenchReport


def print_bench(report: "BenchReport") -> None:
    """Print the report of `bench`."""
    from mha2gqa.verbs.bench.words import facts, notes, tables

    known = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts(report):
        known.add_row(name, escape(value))
    out.print(known, soft_wrap=True)
    for one in tables(report):
        table = plain_table(*(one.header[:-1] if one.remarks else one.header))
        if one.remarks:
            table.add_column(one.header[-1], overflow="fold")
        for row in one.rows:
            table.add_row(*map(escape, row))
        out.print(f"\n{one.name}")
        out.print(table)
    out.print()
    for note in notes(report):
        out.print(escape(note), soft_wrap=True)
