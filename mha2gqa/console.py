"""The only module that prints: results to stdout, progress and errors to stderr.

It words reports for people (tables by rich) or for programs (`--json`), and turns a refusal into one
message and exit code 1. It decides nothing.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mha2gqa.checkpoint.sizes import format_size as size

if TYPE_CHECKING:
    from rich.progress import Progress

    from mha2gqa.calibration.refine import LayerReport
    from mha2gqa.commands.demo import DemoRow
    from mha2gqa.commands.inspect import InspectReport
    from mha2gqa.evaluation.results import Verification
    from mha2gqa.report import ChangeReport

_PIPE_WIDTH = 160
"""Columns when stdout is no terminal: wide enough that no number is folded."""

_out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
_err = Console(stderr=True, highlight=False)


def print_json(content: dict[str, Any]) -> None:
    """Print a report as one JSON object."""
    _out.out(json.dumps(content, indent=1, ensure_ascii=False, default=str))


def print_error(message: str) -> None:
    """Print a refusal."""
    _err.print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True)


def print_note(message: str) -> None:
    """Print something worth knowing that is not the result."""
    _err.print(_escape(message), soft_wrap=True, style="dim")


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of bytes on stderr while the block runs; yields `advance(done, total)`."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def advance(size: int, total: int) -> None:
            progress.update(task, advance=size, total=total)

        yield advance


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for each stage of the block; yields `advance(stage, done, total)`."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
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
            _err.print(f"layer {number}/{total} {_escape(layer.module)}: error {errors}", soft_wrap=True, style="dim")


@contextlib.contextmanager
def conversion() -> Iterator[Conversion]:
    """Show a conversion while the block runs."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
        yield Conversion(progress)


def print_change(report: "ChangeReport") -> None:
    """Print the report of `convert` or `expand`."""
    if not report.written:
        _print_plan(report)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    changed = sum(tensor["action"] == "changed" for tensor in report.tensors)
    copied = sum(tensor["action"] == "copied" for tensor in report.tensors)
    rows = {
        "source": f"{report.source} ({report.model_type})",
        "output": str(report.output),
        "KV heads": f"{report.heads_before} -> {report.heads_after}" + (f", {report.method}" if report.method else ""),
        **_layer_rows(report),
        "KV cache": f"{size(report.cache_before)} -> {size(report.cache_after)} a token"
        f" ({report.cache_after / max(1, report.cache_before):.0%})",
        "weights": f"{size(report.bytes_read)} -> {size(report.bytes_written)}",
        "tensors": f"{changed} changed, {copied} copied",
    }
    for name, value in rows.items():
        table.add_row(name, _escape(value))
    if report.written:
        speed = report.bytes_read / max(report.seconds, 1e-9)
        name = "writing" if report.layers else "time"
        table.add_row(name, f"{report.seconds:.1f} s ({size(int(speed))}/s)")
    _out.print(table, soft_wrap=True)


def _layer_rows(report: "ChangeReport") -> dict[str, str]:
    """Return rows about what a layer method did: what could not move, the errors of layers, what `auto` tried."""
    rows: dict[str, str] = {}
    fixed = {side: sum(layer[side] == "fixed" for layer in report.layers) for side in ("keys", "values")}
    if any(fixed.values()) and report.method not in ("mean", "first", "random"):
        held = " and ".join(f"the {side} of {count}" for side, count in fixed.items() if count)
        rows["averaged"] = f"{held} of {len(report.layers)} layers, which the family does not allow to move"
    if report.text:
        rows["text"] = report.text
    steps = list(report.layers[0]["errors"]) if report.layers else []
    for step in steps:
        mean = sum(layer["errors"].get(step, min(layer["errors"].values())) for layer in report.layers)
        rows[f"error {step}"] = f"{mean / len(report.layers):.4f} of the attention outputs' energy, mean of the layers"
    for trial in report.trials:
        way = trial["refine"] or "aligned"
        rows[f"tried {way}"] = f"perplexity {trial['increase']:+.2%} (loss {trial['loss']:.4f})"
    return rows


def _print_plan(report: "ChangeReport") -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("tensor", "action", "dtype", "before", "after"):
        table.add_column(name, overflow="fold")
    for tensor in report.tensors:
        shapes = ("-" if tensor[key] is None else str(list(tensor[key])) for key in ("before", "after"))
        table.add_row(_escape(tensor["name"]), tensor["action"], tensor["dtype"], *map(_escape, shapes))
    _out.print(table)
    for file, length in report.files.items():
        _out.print(f"write {file}: {size(length)}")
    for companion in report.companions:
        _out.print(f"copy {_escape(companion)}", soft_wrap=True)
    for change in report.config_changes:
        path = ".".join(change["path"])
        _out.print(f"config.json {path}: {json.dumps(change['before'])} -> {json.dumps(change['after'])}")
    _out.print("\nDry run: nothing was written.\n")


def print_inspection(report: "InspectReport") -> None:
    """Print the report of `inspect`."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    heads = "latent (MLA)" if report.latent else f"{report.query_heads} query heads, {report.kv_heads} KV heads"
    width = f", {report.head_width} wide" if report.head_width else ""
    facts.add_row("model", _escape(report.source))
    facts.add_row("family", f"{report.model_type} ({report.architecture}), {report.dtype}")
    facts.add_row("attention", f"{report.layers} layers with a KV cache, {heads}{width}")
    facts.add_row("parameters", f"{report.parameters:,}")
    _out.print(facts, soft_wrap=True)
    _out.print(_parameter_table(report))
    if report.rows:
        _out.print(_cache_table(report))
    _out.print(_escape(report.verdict), soft_wrap=True)


def print_verification(report: "Verification") -> None:
    """Print the report of `verify`."""
    from mha2gqa.evaluation.summary import summary

    for number, section in enumerate(summary(report)):
        table = Table(box=None, show_header=bool(section.header), padding=(0, 2, 0, 0))
        for column in range(len(section.rows[0]) if section.rows else 0):
            title = section.header[column] if section.header else ""
            is_number = section.numbers and column > 0
            table.add_column(title, justify="right" if is_number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(_escape, row))
        if number:
            _out.print()
        _out.print(table)


def print_demo(rows: "Iterable[DemoRow]") -> None:
    """Print the result table of `demo`, with a spinner while its rows are made."""
    table = _table("checkpoint", "KV heads", "method", "cache a token", "held-out loss", "perplexity")
    with _err.status("converting and evaluating the reference checkpoint ..."):
        for row in rows:
            numbers = (f"{row.cache_per_token:,} B", f"{row.loss:.3f}", f"{row.perplexity:.2f}")
            table.add_row(row.name, str(row.kv_heads), row.method, *numbers)
    _out.print(table)


def _parameter_table(report: "InspectReport") -> Table:
    table = _table("parameters", *(f"a layer (of {kind['layers']})" for kind in report.layer_kinds), "total")
    per_layer = {role: [kind.get(role, 0) for kind in report.layer_kinds] for role in report.parameters_by_role}
    both = [kind.get("attention", 0) + kind.get("mlp", 0) for kind in report.layer_kinds]
    for role, total in report.parameters_by_role.items():
        table.add_row(role, *(f"{number:,}" for number in per_layer[role]), f"{total:,}")
    layers = sum(kind["layers"] * number for kind, number in zip(report.layer_kinds, both, strict=True))
    table.add_row("attention + mlp", *(f"{number:,}" for number in both), f"{layers:,}", style="bold")
    return table


def _cache_table(report: "InspectReport") -> Table:
    contexts = (f"at {_context(one)}" for one in report.rows[0].bytes_at)
    table = _table("KV heads", "cache a token", *contexts, "of now")
    table.add_column("TP sizes", no_wrap=True)
    now = report.rows[0].bytes_per_token
    for row in report.rows:
        sizes = ", ".join(map(str, row.tensor_parallel)) or "-"
        cells = (f"{row.bytes_per_token:,} B", *(size(one) for one in row.bytes_at.values()))
        table.add_row(str(row.groups or "latent"), *cells, f"{row.bytes_per_token / max(1, now):.1%}", sizes)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _context(tokens: int) -> str:
    return f"{tokens // 1024}k"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
