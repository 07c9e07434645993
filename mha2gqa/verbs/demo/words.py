"""The result table of `demo`."""

from collections.abc import Iterable

from mha2gqa.sections import Section, numbers
from mha2gqa.verbs.demo.run import DemoRow

_TITLES = ("checkpoint", "KV heads", "method", "cache a token", "held-out loss", "perplexity")


def results(rows: Iterable[DemoRow]) -> Section:
    """Return the table."""
    return Section(numbers(*_TITLES), tuple(map(_cells, rows)))


def _cells(row: DemoRow) -> tuple[str, ...]:
    measured = (f"{row.cache_per_token:,} B", f"{row.loss:.3f}", f"{row.perplexity:.2f}")
    return (row.name, str(row.kv_heads), row.method, *measured)
