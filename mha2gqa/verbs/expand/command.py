"""`expand` on the command line: one bar, of bytes."""

from mha2gqa import console
from mha2gqa.verbs.convert.words import summary
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand


class Bytes(console.Bars):
    """Shows an expansion as it goes."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Move the bar on; writing is all there is."""
        super().stage(self.command, done, total)


def command(options: ExpandOptions, *, as_json: bool) -> None:
    """Expand, and print what was done."""
    with console.bars("expand", Bytes, "bytes") as progress:
        report = expand(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
