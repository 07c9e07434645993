"""The report of `inspect`, for people."""

from typing import TYPE_CHECKING

from rich.table import Table

from mha2gqa.console.terminal import escape, out, plain_table
from mha2gqa.files.sizes import format_size as size

if TYPE_CHECKING:
    from mha2gqa.verbs.inspect.run import InspectReport


def print_inspection(report: "InspectReport") -> None:
    """Print the report of `inspect`."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    heads = "latent (MLA)" if report.latent else f"{report.query_heads} query heads, {report.kv_heads} KV heads"
    width = f", {report.head_width} wide" if report.head_width else ""
    facts.add_row("model", escape(report.source))
    facts.add_row("family", f"{report.model_type} ({report.architecture}), {report.dtype}")
    cross = f", {report.cross_layers} that cache the encoder's tokens" if report.cross_layers else ""
    facts.add_row("attention", f"{report.layers or 'no'} layers with a KV cache{cross}, {heads}{width}")
    facts.add_row("parameters", f"{report.parameters:,}")
    out.print(facts, soft_wrap=True)
    out.print(_parameter_table(report))
    if report.rows:
        out.print(_cache_table(report))
    out.print(escape(report.verdict), soft_wrap=True)


def _parameter_table(report: "InspectReport") -> Table:
    table = plain_table("parameters", *(f"a layer (of {kind['layers']})" for kind in report.layer_kinds), "total")
    per_layer = {role: [kind.get(role, 0) for kind in report.layer_kinds] for role in report.parameters_by_role}
    both = [kind.get("attention", 0) + kind.get("mlp", 0) for kind in report.layer_kinds]
    for role, total in report.parameters_by_role.items():
        table.add_row(role, *(f"{number:,}" for number in per_layer[role]), f"{total:,}")
    layers = sum(kind["layers"] * number for kind, number in zip(report.layer_kinds, both, strict=True))
    table.add_row("attention + mlp", *(f"{number:,}" for number in both), f"{layers:,}", style="bold")
    return table


def _cache_table(report: "InspectReport") -> Table:
    contexts = (f"at {_context(one)}" for one in report.rows[0].bytes_at)
    has_cross = report.cross_layers > 0
    cross = ["cross-attention, a token read"] if has_cross else []
    table = plain_table("KV heads", "cache a token", *cross, *contexts, "of now")
    table.add_column("TP sizes", no_wrap=True)
    now = report.rows[0].bytes_per_token
    for row in report.rows:
        sizes = ", ".join(map(str, row.tensor_parallel)) or "-"
        read = [f"{row.cross_bytes_per_token:,} B"] if has_cross else []
        cells = (f"{row.bytes_per_token:,} B", *read, *(size(one) for one in row.bytes_at.values()))
        table.add_row(str(row.groups or "latent"), *cells, f"{row.bytes_per_token / max(1, now):.1%}", sizes)
    return table


def _context(tokens: int) -> str:
    return f"{tokens // 1024}k"
