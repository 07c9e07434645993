"""The two streams: results to stdout, errors and notes to stderr; and the table that all reports are set in."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["err", "escape", "out", "plain_table", "print_error", "print_json", "print_json_line", "print_note"]

_PIPE_WIDTH = 160
"""Columns when stdout is no terminal: wide enough that no number is folded."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False)


def print_json(content: dict[str, Any]) -> None:
    """Print a report as one JSON object."""
    out.out(json.dumps(content, indent=1, ensure_ascii=False, default=str))


def print_json_line(content: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once."""
    out.out(json.dumps(content, ensure_ascii=False, default=str))
    out.file.flush()


def print_error(message: str) -> None:
    """Print a refusal."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def print_note(message: str) -> None:
    """Print something worth knowing that is not the result."""
    err.print(escape(message), soft_wrap=True, style="dim")


def plain_table(first: str, *others: str) -> Table:
    """Return a table without lines: the first column is a name, the others are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
