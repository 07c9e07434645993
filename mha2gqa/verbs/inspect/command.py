"""`inspect` on the command line."""

from mha2gqa import console
from mha2gqa.verbs.inspect.options import InspectOptions
from mha2gqa.verbs.inspect.run import inspect
from mha2gqa.verbs.inspect.words import summary


def command(options: InspectOptions, *, as_json: bool) -> None:
    """Inspect, and print what was found."""
    report = inspect(options)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
