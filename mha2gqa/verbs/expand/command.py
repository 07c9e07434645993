"""`expand` on the command line: one bar, of bytes."""

from mha2gqa import console
from mha2gqa.verbs.convert.words import summary
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand

_WHOLE = "expanding"


class Bytes(console.Bars):
    """Shows an expansion as it goes."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Move the bar on; writing is all there is."""
        super().stage(_WHOLE, done, total)


def command(options: ExpandOptions, *, as_json: bool) -> None:
    """Expand, and print what was done."""
    with console.bars(Bytes, "bytes") as progress:
        progress.show(_WHOLE, 0, None, _WHOLE)  # headers are read before the first byte is written
        report = expand(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
