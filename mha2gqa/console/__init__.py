"""The only part that prints: results to stdout, progress and errors to stderr; a module a report.

It words reports for people (tables by rich) or for programs (`--json`). It decides nothing.
"""

from mha2gqa.console.benchmark import print_bench
from mha2gqa.console.changes import print_change
from mha2gqa.console.demo import print_demo
from mha2gqa.console.inspection import print_inspection
from mha2gqa.console.progress import conversion, progress_bar, stages
from mha2gqa.console.sweeping import print_sweep, sweeping
from mha2gqa.console.terminal import print_error, print_json, print_json_line, print_note
from mha2gqa.console.uptraining import print_uptraining, training
from mha2gqa.console.verification import print_verification

__all__ = [
    "conversion",
    "print_bench",
    "print_change",
    "print_demo",
    "print_error",
    "print_inspection",
    "print_json",
    "print_json_line",
    "print_note",
    "print_sweep",
    "print_uptraining",
    "print_verification",
    "progress_bar",
    "stages",
    "sweeping",
    "training",
]
