"""`convert` on the command line: a bar for each stage, a line for each layer in which something was gained."""

import time
from collections.abc import Mapping

from mha2gqa import console
from mha2gqa.progress import WRITING
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.convert.words import layer_line, summary


class Layers(console.Bars):
    """Shows a conversion as it goes."""

    _since, _written = 0.0, 0

    def stage(self, name: str, done: int, total: int) -> None:
        """Move a bar on; beside that of text which the model writes stand tokens a second."""
        super().stage(name, done, total)
        if name == WRITING:
            now = time.monotonic()
            self._since, self._written = self._since or now, self._written + done
            if now > self._since:
                self.show(name, self._written, total, f"{name}, {self._written / (now - self._since):,.0f} tokens/s")

    def layer(self, module: str, errors: Mapping[str, float], number: int, total: int) -> None:
        """Move the bar of the layers on; what was gained in one is worth a line."""
        self.stage("layers", 1, total)
        if errors:
            console.print_note(layer_line(module, errors, number, total))


def command(options: ConvertOptions, *, as_json: bool) -> None:
    """Convert, and print what was done."""
    with console.bars("convert", Layers) as progress:
        report = convert(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
