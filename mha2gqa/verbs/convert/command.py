"""`convert` on the command line: a bar for each stage, a line for each layer in which something was gained."""

from collections.abc import Mapping

from mha2gqa import console
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.convert.words import layer_line, summary


class Layers(console.Bars):
    """Shows a conversion as it goes."""

    def layer(self, module: str, errors: Mapping[str, float], number: int, total: int) -> None:
        """Move the bar of the layers on; what was gained in one is worth a line."""
        self.stage("layers", 1, total)
        if errors:
            console.print_note(layer_line(module, errors, number, total))


def command(options: ConvertOptions, *, as_json: bool) -> None:
    """Convert, and print what was done."""
    with console.bars(Layers) as progress:
        report = convert(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
