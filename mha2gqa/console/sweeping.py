"""The report of `sweep`, for people, and what is shown while it runs."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mha2gqa.console.terminal import err, escape, out, plain_table
from mha2gqa.progress import Progress

if TYPE_CHECKING:
    from rich import progress as bars

    from mha2gqa.verbs.sweep.outcome import Sweep


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


class Sweeping(Progress):
    """Shows a sweep on stderr: a bar for all steps, one for what the present one does, a line for each point."""

    def __init__(self, shown: "bars.Progress") -> None:
        self._shown = shown
        self._whole = shown.add_task("sweep", total=None)
        self._stages: dict[str, bars.TaskID] = {}

    def step(self, name: str, done: int, total: int) -> None:
        """Take note of a step that begins."""
        for task in self._stages.values():
            self._shown.remove_task(task)
        self._stages.clear()
        self._shown.update(self._whole, description=f"sweep: {name}", completed=done, total=total)

    def stage(self, name: str, done: int, total: int) -> None:
        """Take note of a part of a step."""
        if name not in self._stages:
            self._stages[name] = self._shown.add_task(f"  {name}", total=total)
        self._shown.update(self._stages[name], advance=done)

    def event(self, event: Mapping[str, Any]) -> None:
        """Take note of a conversion that was measured."""
        losses = f"loss {event['loss']:.4f} ({event['difference']:+.4f}), perplexity {event['increase']:+.2%}"
        err.print(escape(f"{event['name']}: {losses}"), soft_wrap=True, style="dim")


@contextlib.contextmanager
def sweeping() -> Iterator[Progress]:
    """Show a sweep while the block runs."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Shown

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Shown(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        yield Sweeping(shown)
