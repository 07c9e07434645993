"""The only module that prints: results to stdout; progress, notes and errors to stderr.

It sets the parts of a report (`sections.py`) in type, or prints JSON, and shows bars. It knows no verb.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mha2gqa.errors import visible
from mha2gqa.progress import Progress
from mha2gqa.sections import Facts, Paragraph, Part, Section

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

Shown = TypeVar("Shown", bound="Bars")

_PIPE_WIDTH = 160
"""Columns when stdout is no terminal: wide enough that no number is folded."""

_TEXT_WIDTH = 4
"""Characters of a text that a narrow table has room for."""

_LONG = 2000
"""Rows of a table above which it is set plainly: rich takes a millisecond for each."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, highlight=False)


def _shown(text: str) -> str:
    """Return text that is shown as it is, and steers no terminal: names come from files, folders and command lines."""
    return escape(visible(text))


def print_report(parts: Iterable[Part]) -> None:
    """Print a report for people."""
    for part in parts:
        if isinstance(part, Facts):
            out.print(_facts(part), soft_wrap=True)
        elif isinstance(part, Section) and len(part.rows) > _LONG:
            out.file.writelines(f"{line}\n" for line in _lines(part))
        elif isinstance(part, Section):
            out.print(_table(part), crop=False)
        else:
            out.print(_shown(part), soft_wrap=not isinstance(part, Paragraph))


def print_json(content: Mapping[str, Any]) -> None:
    """Print a report for programs, as one JSON object, indented unless it is very long."""
    # Python's fast encoder knows no indentation.
    is_long = any(isinstance(value, list) and len(value) > _LONG for value in content.values())
    _write(json.dumps(content, indent=None if is_long else 1, ensure_ascii=False, default=str))


def print_json_line(content: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own, at once."""
    _write(json.dumps(content, ensure_ascii=False, default=str))


def _write(line: str) -> None:
    """Write what programs read past rich, which takes ten seconds for that of 37,000 tensors."""
    out.file.write(f"{line}\n")
    out.file.flush()


def print_error(message: str) -> None:
    """Print a refusal."""
    err.print(f"[bold red]error:[/] {_shown(message)}", soft_wrap=True)


def print_note(message: str) -> None:
    """Print something worth knowing that is not the result."""
    err.print(_shown(message), soft_wrap=True, style="dim")


def print_page(directory: Path | None) -> None:
    """Say where the page is, if there is one."""
    if directory is not None:
        print_note(f"The page is {directory / 'report.html'}")


def _facts(part: Facts) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in part.rows:
        table.add_row(name, _shown(value))
    return table


def _table(part: Section) -> Table:
    """Return a table without lines."""
    table = Table(box=None, show_header=any(column.title for column in part.columns), padding=(0, 2, 0, 0))
    for column in part.columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
        )
    for number, row in enumerate(part.rows):
        table.add_row(*map(_shown, row), style="bold" if number == part.bold else None)
    # Numbers are whole also where a terminal is narrower than they are together: its lines go on below.
    least = _least_width(part)
    table.width = least if least > out.width else None
    return table


def _least_width(part: Section) -> int:
    """Return how wide a table is at least: its numbers and their titles, a few characters of each text."""
    rows = [tuple(column.title for column in part.columns), *part.rows]
    widths = zip(part.columns, (max(map(len, cells)) for cells in zip(*rows, strict=True)), strict=True)
    return sum(2 + (width if column.is_number else min(width, _TEXT_WIDTH)) for column, width in widths)


def _lines(part: Section) -> Iterator[str]:
    """Yield the lines of a table whose columns are as wide as their widest text."""
    rows = [tuple(map(visible, row)) for row in (tuple(column.title for column in part.columns), *part.rows)]
    widths = [max(map(len, texts)) for texts in zip(*rows, strict=True)]
    for row in rows if any(rows[0]) else rows[1:]:
        cells = zip(row, widths, part.columns, strict=True)
        texts = (text.rjust(width) if column.is_number else text.ljust(width) for text, width, column in cells)
        yield "  ".join(texts).rstrip()


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show on stderr that something takes its time while the block runs."""
    with err.status(_shown(message)):
        yield


class Bars(Progress):
    """Bars on stderr, one for each thing that is under way; each has a name, and comes when it is first told of.

    The first is that of the command: it moves, and counts the seconds, whatever goes on, so that nothing looks dead.
    """

    def __init__(self, shown: "RichProgress", command: str) -> None:
        self._shown, self.command, self._said = shown, command, command
        self._bars: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self.show(command, 0, None, command)

    def stage(self, name: str, done: int, total: int) -> None:
        """Move a bar on by `done`."""
        self._shown.update(self._bar(name, total), advance=done, total=total)

    @contextlib.contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        """Say beside the command what goes on."""
        whole, said = self._bars[self.command], self._said
        self._shown.update(whole, description=f"{said}: {name}")
        try:
            yield
        finally:
            self._shown.update(whole, description=said)

    def show(self, name: str, done: int, total: int | None, text: str) -> None:
        """Set a bar to all that was done, with a text; None is a total that is not known."""
        self._said = text if name == self.command else self._said
        self._shown.update(self._bar(name, total), completed=done, total=total, description=text)

    def keep(self, name: str) -> None:
        """Take all other bars away."""
        for other in [one for one in self._bars if one != name]:
            self._shown.remove_task(self._bars.pop(other))

    def _bar(self, name: str, total: int | None) -> "TaskID":
        with self._lock:  # writing tells from several threads
            if name not in self._bars:
                self._bars[name] = self._shown.add_task(name, total=total)
            return self._bars[name]


@contextlib.contextmanager
def bars(
    command: str, kind: type[Shown], unit: Literal["share", "bytes", "steps"] = "share", *, shown: bool = True
) -> Iterator[Shown]:
    """Show bars while the block runs, where stderr is a terminal.

    Args:
        command: What runs.
        kind: `Bars`, or what derives from it for one verb.
        unit: What is said beside them.
        shown: False shows none.
    """
    from rich.progress import Progress as RichProgress

    is_shown = shown and err.is_terminal
    with RichProgress(*_columns(unit), console=err, transient=True, disable=not is_shown) as progress:
        yield kind(progress, command)


def _columns(unit: str) -> "tuple[ProgressColumn, ...]":
    from rich import progress as of

    class Remaining(of.TimeRemainingColumn):
        """What is left; of what has no end that is known, the time that it has taken."""

        def render(self, task: of.Task) -> Text:
            return super().render(task) if task.total is not None else of.TimeElapsedColumn().render(task)

    first = (of.TextColumn("{task.description}"), of.BarColumn())
    if unit == "bytes":
        return (*first, of.DownloadColumn(), of.TransferSpeedColumn(), Remaining())
    if unit == "steps":
        return (*first, of.MofNCompleteColumn(), of.TimeElapsedColumn(), Remaining(compact=True))
    return (*first, of.TaskProgressColumn(), Remaining())
