"""`export` on the command line."""

import shlex
from collections.abc import Iterator

from mha2gqa import console
from mha2gqa.sections import Facts
from mha2gqa.units import format_size
from mha2gqa.verbs.export.options import ExportOptions
from mha2gqa.verbs.export.run import Exported, export


def command(options: ExportOptions, *, as_json: bool) -> None:
    """Export, and print what was made."""
    report = export(options)
    console.print_json(report.to_json()) if as_json else console.print_report([Facts(tuple(_facts(report)))])


def _facts(report: Exported) -> Iterator[tuple[str, str]]:
    yield "checkpoint", report.checkpoint
    if report.gguf is not None and report.size is not None:
        yield "GGUF", f"{report.gguf} ({format_size(report.size)})"
        yield "next", f"mha2gqa verify {shlex.quote(report.checkpoint)} --level load --engine llama.cpp"
    if report.pushed is not None:
        yield "uploaded", report.pushed
