"""The result table of `demo`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mha2gqa.console.terminal import err, out, plain_table

if TYPE_CHECKING:
    from mha2gqa.verbs.demo.run import DemoRow


def print_demo(rows: "Iterable[DemoRow]") -> None:
    """Print the result table of `demo`, with a spinner while its rows are made."""
    table = plain_table("checkpoint", "KV heads", "method", "cache a token", "held-out loss", "perplexity")
    with err.status("converting and evaluating the reference checkpoint ..."):
        for row in rows:
            numbers = (f"{row.cache_per_token:,} B", f"{row.loss:.3f}", f"{row.perplexity:.2f}")
            table.add_row(row.name, str(row.kv_heads), row.method, *numbers)
    out.print(table)
