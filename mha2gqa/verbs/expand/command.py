"""`expand` on the command line."""

from mha2gqa import console
from mha2gqa.verbs.convert.words import summary
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand


def command(options: ExpandOptions, *, as_json: bool) -> None:
    """Expand, and print what was done."""
    with console.bars(console.Bars, "bytes") as progress:
        report = expand(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
