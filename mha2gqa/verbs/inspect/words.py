"""The report of `inspect` in words: what the checkpoint is, where its parameters are, what each G would save."""

import shlex
from collections.abc import Iterator

from mha2gqa.sections import Column, Facts, Paragraph, Part, Section, numbers
from mha2gqa.units import format_size
from mha2gqa.verbs.inspect.run import InspectReport
from mha2gqa.verbs.inspect.windows import Windows


def summary(report: InspectReport) -> Iterator[Part]:
    """Yield the parts of the report in the order in which they are read; verdict and next command come last."""
    yield _facts(report)
    yield _parameters(report)
    if report.rows:
        yield _caches(report)
    if report.windows is not None:
        yield from _windows(report, report.windows)
    if report.latents:
        yield _latents(report)
    if report.latent_note:
        yield Paragraph(f"latent  {report.latent_note}\n")
    yield report.verdict
    if report.convertible and len(report.rows) > 1:
        yield f"next: mha2gqa convert {shlex.quote(report.source)} --groups {report.rows[1].groups} --method aligned"


def _facts(report: InspectReport) -> Facts:
    heads = "latent (MLA)" if report.latent else f"{report.query_heads} query heads, {report.kv_heads} KV heads"
    width = f", {report.head_width} wide" if report.head_width else ""
    cross = f", {report.cross_layers} that cache the encoder's tokens" if report.cross_layers else ""
    return Facts(
        (
            ("model", report.source),
            ("family", f"{report.model_type} ({report.architecture}), {report.dtype}"),
            ("attention", f"{report.layers or 'no'} layers with a KV cache{cross}, {heads}{width}"),
            ("parameters", f"{report.parameters:,}"),
        )
    )


def _parameters(report: InspectReport) -> Section:
    kinds = report.layer_kinds
    rows = [
        (role, *(f"{kind.get(role, 0):,}" for kind in kinds), f"{total:,}")
        for role, total in report.parameters_by_role.items()
    ]
    both = [kind.get("attention", 0) + kind.get("mlp", 0) for kind in kinds]
    layers = sum(kind["layers"] * number for kind, number in zip(kinds, both, strict=True))
    rows.append(("attention + mlp", *(f"{number:,}" for number in both), f"{layers:,}"))
    columns = numbers("parameters", *(f"a layer (of {kind['layers']})" for kind in kinds), "total")
    return Section(columns, tuple(rows), bold=len(rows) - 1)


def _caches(report: InspectReport) -> Section:
    contexts = (f"at {tokens // 1024}k" for tokens in report.rows[0].bytes_at)
    has_cross = report.cross_layers > 0
    cross = ["cross-attention, a token read"] * has_cross
    now = report.rows[0].bytes_per_token
    rows = tuple(
        (
            str(row.groups or "latent"),
            f"{row.bytes_per_token:,} B",
            *[f"{row.cross_bytes_per_token:,} B"] * has_cross,
            *map(format_size, row.bytes_at.values()),
            f"{row.bytes_per_token / max(1, now):.1%}",
            ", ".join(map(str, row.tensor_parallel)) or "-",
        )
        for row in report.rows
    )
    return Section((*numbers("KV heads", "cache a token", *cross, *contexts, "of original"), Column("TP sizes")), rows)


def _windows(report: InspectReport, windows: Windows) -> Iterator[Part]:
    """Yield what windows would save: shares are of what the KV heads that there are keep at that length."""
    if windows.rows:
        now = report.rows[0].bytes_at
        contexts = (f"at {tokens // 1024}k" for tokens in now)
        rows = tuple(
            (
                f"{row.window:,}",
                row.host,
                *(f"{format_size(size)} ({size / max(1, now[tokens]):.1%})" for tokens, size in row.bytes_at.items()),
            )
            for row in windows.rows
        )
        yield Section((*numbers("window"), Column("class"), *numbers(*contexts)), rows)
    if windows.refusal:
        yield f"No window: {windows.refusal}"
    elif windows.by_layer:
        yield f"With a window on some layers only (--window-layers) the class is {windows.by_layer}."


def _latents(report: InspectReport) -> Section:
    now = report.rows[0].bytes_per_token
    rows = tuple(
        (
            f"{row.numbers:,}",
            "-" if row.groups is None else str(row.groups),
            ", ".join(map(str, row.rope_widths)),
            f"{row.bytes_per_token:,} B",
            f"{row.bytes_per_token / max(1, now):.1%}",
            "yes" if row.kernels else "no",
        )
        for row in report.latents
    )
    titles = ("MLA: latent + rope width", "as large as G =", "--rope-width", "cache a token", "of original")
    return Section((*numbers(*titles), Column("vLLM's MLA kernels")), rows)
