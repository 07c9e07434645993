"""`bench` on the command line."""

from mha2gqa import console
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.run import bench
from mha2gqa.verbs.bench.words import summary


def command(options: BenchOptions, *, as_json: bool) -> None:
    """Measure, and print what was found."""
    with console.bars("bench", console.Bars) as progress:
        report = bench(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
    console.print_page(options.report)
