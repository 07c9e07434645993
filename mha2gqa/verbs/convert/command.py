"""`convert` on the command line: a bar for each stage, a line for each layer in which something was gained."""

from functools import partial

from mha2gqa import console
from mha2gqa.refine.refine import LayerReport
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.convert.words import layer_line, summary


def command(options: ConvertOptions, *, as_json: bool) -> None:
    """Convert, and print what was done."""
    with console.bars() as bars:

        def finished(layer: LayerReport, number: int, total: int) -> None:
            bars.advance("layers", 1, total)
            if layer.errors:
                console.print_note(layer_line(layer, number, total))

        report = convert(options, partial(bars.advance, "writing"), stages=bars.advance, tell=finished)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
