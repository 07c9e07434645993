"""Bars and lines on stderr while something runs."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mha2gqa.console.terminal import err, escape
from mha2gqa.progress import Progress

if TYPE_CHECKING:
    from rich import progress as bars


class Bars(Progress):
    """Shows a bar on stderr for each stage."""

    def __init__(self, shown: "bars.Progress") -> None:
        self._shown = shown
        self._tasks: dict[str, bars.TaskID] = {}
        self._lock = threading.Lock()

    def stage(self, name: str, done: int, total: int) -> None:
        """Take note of a part of a stage."""
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._shown.add_task(name, total=total)
        self._shown.update(self._tasks[name], advance=done)


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Show the bytes that are written as a bar on stderr while the block runs."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Shown

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Shown(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Bars(shown)


@contextlib.contextmanager
def stages() -> Iterator[Progress]:
    """Show a bar on stderr for each stage of the block."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Shown

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Shown(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Bars(shown)


class Conversion(Bars):
    """Shows a conversion on stderr as it goes: a bar for each stage, a line for each finished layer."""

    def layer(self, module: str, errors: Mapping[str, float], number: int, total: int) -> None:
        """Take note of a finished layer; what was gained in it is worth a line."""
        self.stage("layers", 1, total)
        if errors:
            told = ", ".join(f"{step} {error:.4f}" for step, error in errors.items())
            err.print(f"layer {number}/{total} {escape(module)}: error {told}", soft_wrap=True, style="dim")


@contextlib.contextmanager
def conversion() -> Iterator[Conversion]:
    """Show a conversion while the block runs."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Shown

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Shown(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Conversion(shown)
