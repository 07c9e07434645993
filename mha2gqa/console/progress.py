"""Bars and lines on stderr while something runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mha2gqa.console.terminal import err, escape

if TYPE_CHECKING:
    from rich.progress import Progress

    from mha2gqa.refine.refine import LayerReport


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of bytes on stderr while the block runs; yields `advance(done, total)`."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def advance(size: int, total: int) -> None:
            progress.update(task, advance=size, total=total)

        yield advance


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for each stage of the block; yields `advance(stage, done, total)`."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def advance(stage: str, size: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], advance=size)

        yield advance


class Conversion:
    """Shows a conversion on stderr as it goes: a bar for each stage, a line for each finished layer."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def bytes_written(self, done: int, total: int) -> None:
        """Take note of bytes."""
        self.stage("writing", done, total)

    def stage(self, stage: str, done: int, total: int) -> None:
        """Take note of a part of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], advance=done)

    def layer(self, layer: "LayerReport", number: int, total: int) -> None:
        """Take note of a finished layer; what was gained in it is worth a line."""
        self.stage("layers", 1, total)
        if layer.errors:
            errors = ", ".join(f"{step} {error:.4f}" for step, error in layer.errors.items())
            err.print(f"layer {number}/{total} {escape(layer.module)}: error {errors}", soft_wrap=True, style="dim")


@contextlib.contextmanager
def conversion() -> Iterator[Conversion]:
    """Show a conversion while the block runs."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield Conversion(progress)
