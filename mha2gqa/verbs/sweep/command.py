"""`sweep` on the command line: a bar for all steps, one for what the present one does, a line for each point."""

from collections.abc import Mapping
from typing import Any

from mha2gqa import console
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.run import sweep
from mha2gqa.verbs.sweep.words import point_line, summary

_WHOLE = "sweep"


class Steps(console.Bars):
    """Shows a sweep as it goes."""

    def step(self, name: str, done: int, total: int) -> None:
        """Begin a step: the bars of the one before go."""
        self.keep(_WHOLE)
        self.show(_WHOLE, done, total, f"{_WHOLE}: {name}")

    def stage(self, name: str, done: int, total: int) -> None:
        """Move the bar of a part of the step on."""
        super().stage(f"  {name}", done, total)

    def event(self, event: Mapping[str, Any]) -> None:
        """Say what was measured of a conversion."""
        console.print_note(point_line(event))


def command(options: SweepOptions, *, as_json: bool) -> None:
    """Sweep, and print what to take."""
    with console.bars(Steps, "steps") as progress:
        progress.show(_WHOLE, 0, None, _WHOLE)
        report = sweep(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
    console.print_page(options.report)
