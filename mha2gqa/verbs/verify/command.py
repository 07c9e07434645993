"""`verify` on the command line, and the exit code of its verdict."""

from mha2gqa import console
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.run import verify
from mha2gqa.verbs.verify.words import summary

DIFFERENT = 3
"""Exit code where the converted checkpoint is not what it should be."""


def command(options: VerifyOptions, *, as_json: bool) -> int:
    """Verify, print what was established, and return the exit code."""
    with console.bars("verify", console.Bars) as progress:
        report = verify(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_report(summary(report))
    console.print_page(options.report)
    return DIFFERENT if report.verdict == "different" else 0
