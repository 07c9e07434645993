"""The reports of `convert` and `expand`, for people."""

import json
from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from mha2gqa.console.terminal import escape, out
from mha2gqa.files.sizes import format_size as size
from mha2gqa.methods import AUTO_METHOD, find_method

if TYPE_CHECKING:
    from mha2gqa.record.outcome import Outcome


def print_change(report: "Outcome") -> None:
    """Print the report of `convert` or `expand`."""
    if not report.written:
        _print_plan(report)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    counts = Counter(tensor["action"] for tensor in report.tensors)
    rows = {
        "source": f"{report.source} ({report.rehosted_from or report.model_type})",
        "output": str(report.output),
        **_class_row(report),
        **{fact.label: fact.arrow + (f", {report.way}" if report.way else "") for fact in report.change.facts},
        **_layer_rows(report),
        "KV cache": f"{size(report.cache_before)} -> {size(report.cache_after)} a token"
        f" ({report.cache_after / report.cache_before:.0%})"
        if report.cache_before
        else "none: an encoder",
        "weights": f"{size(report.bytes_read)} -> {size(report.bytes_written)}",
        "tensors": f"{counts['changed']} changed, {counts['copied']} copied" + _recomputed(counts["recomputed"]),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    if report.written:
        speed = report.bytes_read / max(report.seconds, 1e-9)
        name = "writing" if report.layers else "time"
        table.add_row(name, f"{report.seconds:.1f} s ({size(int(speed))}/s)")
    out.print(table, soft_wrap=True)


def _class_row(report: "Outcome") -> dict[str, str]:
    if report.rehosted_from is None:
        return {}
    return {"class": f"{report.model_type}: that of {report.rehosted_from} knows only multi-head attention"}


def _recomputed(count: int) -> str:
    return f", {count} recomputed for the class" if count else ""


def _layer_rows(report: "Outcome") -> dict[str, str]:
    """Return rows about what a layer method did: what could not move, the errors of layers, what `auto` tried."""
    rows: dict[str, str] = {}
    fixed = {side: sum(layer[side] == "fixed" for layer in report.layers) for side in ("keys", "values")}
    if any(fixed.values()) and report.method and not find_method(report.method).streams:
        held = " and ".join(f"the {side} of {count}" for side, count in fixed.items() if count)
        rows["averaged"] = f"{held} of {len(report.layers)} layers, which the family does not allow to move"
    if report.text:
        rows["text"] = report.text
    steps = list(report.layers[0]["errors"]) if report.layers else []
    for step in steps:
        mean = sum(layer["errors"].get(step, min(layer["errors"].values())) for layer in report.layers)
        rows[f"error {step}"] = f"{mean / len(report.layers):.4f} of the attention outputs' energy, mean of the layers"
    if report.divergence:
        before, after = report.divergence
        rows["error joint"] = f"KL divergence {before:.4f} -> {after:.4f} nats a token on text kept aside"
    for trial in report.trials:
        way = trial["refine"] or AUTO_METHOD
        rows[f"tried {way}"] = f"perplexity {trial['increase']:+.2%} (loss {trial['loss']:.4f})"
    return rows


def _print_plan(report: "Outcome") -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("tensor", "action", "dtype", "before", "after"):
        table.add_column(name, overflow="fold")
    for tensor in report.tensors:
        shapes = ("-" if tensor[key] is None else str(list(tensor[key])) for key in ("before", "after"))
        table.add_row(escape(tensor["name"]), tensor["action"], tensor["dtype"], *map(escape, shapes))
    out.print(table)
    for file, length in report.files.items():
        out.print(f"write {file}: {size(length)}")
    for name in report.added:
        out.print(f"write {escape(name)}", soft_wrap=True)
    for companion in report.companions:
        out.print(f"copy {escape(companion)}", soft_wrap=True)
    for change in report.config_changes:
        path = ".".join(change["path"])
        out.print(f"config.json {path}: {json.dumps(change['before'])} -> {json.dumps(change['after'])}")
    out.print("\nDry run: nothing was written.\n")
