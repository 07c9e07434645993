"""`sweep` on the command line: a bar for all steps, one for what the present one does, a line for each point."""

from collections.abc import Mapping
from typing import Any

from mha2gqa import console
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.run import sweep
from mha2gqa.verbs.sweep.words import plan_line, point_line, summary


class Steps(console.Bars):
    """Shows a sweep as it goes."""

    def step(self, name: str, done: int, total: int) -> None:
        """Begin a step: the bars of the one before go."""
        self.keep(self.command)
        self.show(self.command, done, total, f"{self.command}: {name}")

    def stage(self, name: str, done: int, total: int) -> None:
        """Move the bar of a part of the step on."""
        super().stage(f"  {name}", done, total)

    def event(self, event: Mapping[str, Any]) -> None:
        """Say what is to be done, and what was measured of a conversion."""
        console.print_note(plan_line(event) if event["kind"] == "plan" else point_line(event))


def command(options: SweepOptions, *, as_json: bool) -> None:
    """Sweep, and print what to take."""
    with console.bars("sweep", Steps, "steps") as progress:
        report = sweep(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
    console.print_page(options.report)
