"""`demo` on the command line: what was won comes first, then the reports of the verbs that it runs."""

from collections.abc import Iterable, Sequence

from mha2gqa import console
from mha2gqa.sections import Paragraph, Section, numbers
from mha2gqa.verbs.demo.options import DemoOptions
from mha2gqa.verbs.demo.run import CALIBRATION, GROUPS, DemoRow, measure, prove, recover
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
    with console.waiting("converting and evaluating the reference checkpoint ..."):
        rows = tuple(measure(directory, tokens))
    console.print_report([_win(rows), _results(rows), ""])
    console.print_report(inspection.summary(inspect(InspectOptions())))
    with console.bars("uptrain", Training) as progress:
        recovered = recover(directory, tokens, progress)
    if recovered is not None:
        console.print_report(uptraining.summary(recovered))
    with console.bars("verify", console.Bars) as progress:
        report = prove(directory, tokens, progress)
    console.print_report(verification.summary(report))
    console.print_page(directory)


def _win(rows: Sequence[DemoRow]) -> Paragraph:
    """Return in words what the first conversions won, and what it cost."""
    original, by_method = rows[0], {row.method: row for row in rows if row.kv_heads == GROUPS[0]}
    best, mean = by_method["aligned-refit"], by_method["mean"]
    cost, pooled = (row.perplexity / original.perplexity - 1 for row in (best, mean))
    return Paragraph(
        f"{best.cache_per_token / original.cache_per_token:.0%} of the KV cache for {cost:+.1%} perplexity, by aligned "
        f"heads refitted on {CALIBRATION:,} tokens; a mean of heads, as in the GQA paper, costs {pooled:+.0%}.\n"
    )


def _results(rows: Iterable[DemoRow]) -> Section:
    """Return the result table."""
    return Section(numbers(*_TITLES), tuple(map(_cells, rows)))


def _cells(row: DemoRow) -> tuple[str, ...]:
    measured = (f"{row.cache_per_token:,} B", f"{row.loss:.3f}", f"{row.perplexity:.2f}")
    return (row.name, str(row.kv_heads), row.method, *measured)
