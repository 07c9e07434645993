"""The report of `sweep`, for people, and what is shown while it runs."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mha2gqa.console.terminal import err, escape, out, plain_table

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mha2gqa.verbs.sweep.outcome import Point, Sweep


def print_sweep(sweep: "Sweep") -> None:
    """Print the report of `sweep`: the points, the single layers, which one to take and how to make it."""
    from mha2gqa.verbs.sweep.words import HEADER, evaluated, layer_table, point_rows, verdict

    out.print(f"model  {escape(sweep.model)} ({sweep.model_type}, {sweep.heads} KV heads)", soft_wrap=True)
    out.print(f"text   {escape(evaluated(sweep))}\n", soft_wrap=True)
    _print_table(HEADER, [row.cells for row in point_rows(sweep)])
    header, rows = layer_table(sweep)
    if rows:
        out.print("\nLoss added by one layer alone, nats a token:")
        _print_table(header, [row.cells for row in rows])
    out.print(f"\n{escape(verdict(sweep))}", soft_wrap=True)
    if sweep.recommended:
        out.print(f"    {escape(sweep.recommended.command)}", soft_wrap=True)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = plain_table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


class Sweeping:
    """Shows a sweep on stderr: a bar for all steps, one for what the present one does, a line for each point."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._whole = progress.add_task("sweep", total=None)
        self._parts: dict[str, TaskID] = {}

    def step(self, name: str, number: int, total: int) -> None:
        """Take note of a step that begins."""
        for task in self._parts.values():
            self._progress.remove_task(task)
        self._parts.clear()
        self._progress.update(self._whole, description=f"sweep: {name}", completed=number, total=total)

    def stage(self, stage: str, size: int, total: int) -> None:
        """Take note of a part of a step."""
        if stage not in self._parts:
            self._parts[stage] = self._progress.add_task(f"  {stage}", total=total)
        self._progress.update(self._parts[stage], advance=size)

    def point(self, point: "Point") -> None:
        """Take note of a measurement."""
        loss = point.measured.loss
        line = f"{point.name}: loss {loss.converted:.4f} ({loss.difference:+.4f}), perplexity {loss.increase:+.2%}"
        err.print(escape(line), soft_wrap=True, style="dim")


@contextlib.contextmanager
def sweeping() -> Iterator[Sweeping]:
    """Show a sweep while the block runs."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield Sweeping(progress)
