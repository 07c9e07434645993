"""`sweep` on the command line: a bar for all steps, one for what the present one does, a line for each point."""

from mha2gqa import console
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.run import sweep
from mha2gqa.verbs.sweep.steps import Watch
from mha2gqa.verbs.sweep.words import point_line, summary

_WHOLE = "sweep"


def command(options: SweepOptions, *, as_json: bool) -> None:
    """Sweep, and print what to take."""
    with console.bars("steps") as bars:

        def begun(name: str, number: int, total: int) -> None:
            bars.keep(_WHOLE)
            bars.show(_WHOLE, number, total, f"{_WHOLE}: {name}")

        watch = Watch(
            step=begun,
            stage=lambda stage, size, total: bars.advance(f"  {stage}", size, total),
            point=lambda point: console.print_note(point_line(point)),
        )
        bars.show(_WHOLE, 0, None, _WHOLE)
        report = sweep(options, watch)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
    console.print_page(options.report)
