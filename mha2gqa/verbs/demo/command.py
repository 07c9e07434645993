"""`demo` on the command line: the reports of the verbs that it runs, one after the other."""

from collections.abc import Iterable

from mha2gqa import console
from mha2gqa.sections import Section, numbers
from mha2gqa.verbs.demo.options import DemoOptions
from mha2gqa.verbs.demo.run import DemoRow, measure, prove, recover
from mha2gqa.verbs.inspect import words as inspection
from mha2gqa.verbs.inspect.options import InspectOptions
from mha2gqa.verbs.inspect.run import inspect
from mha2gqa.verbs.uptrain import words as uptraining
from mha2gqa.verbs.uptrain.command import Training
from mha2gqa.verbs.verify import words as verification

_TITLES = ("checkpoint", "KV heads", "method", "cache a token", "held-out loss", "perplexity")


def command(options: DemoOptions) -> None:
    """Run the tour, and print each result as it comes."""
    directory, tokens = options.directory, options.tokens
    console.print_report(inspection.summary(inspect(InspectOptions())))
    with console.waiting("converting and evaluating the reference checkpoint ..."):
        table = _results(measure(directory, tokens))
    console.print_report([table])
    with console.bars(Training) as progress:
        recovered = recover(directory, tokens, progress)
    if recovered is not None:
        console.print_report(uptraining.summary(recovered))
    with console.bars(console.Bars) as progress:
        report = prove(directory, tokens, progress)
    console.print_report(verification.summary(report))
    console.print_page(directory)


def _results(rows: Iterable[DemoRow]) -> Section:
    """Return the result table."""
    return Section(numbers(*_TITLES), tuple(map(_cells, rows)))


def _cells(row: DemoRow) -> tuple[str, ...]:
    measured = (f"{row.cache_per_token:,} B", f"{row.loss:.3f}", f"{row.perplexity:.2f}")
    return (row.name, str(row.kv_heads), row.method, *measured)
