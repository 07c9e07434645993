"""`demo` on the command line: the reports of the verbs that it runs, one after the other."""

from mha2gqa import console
from mha2gqa.verbs.demo.options import DemoOptions
from mha2gqa.verbs.demo.run import describe, measure, prove, recover
from mha2gqa.verbs.demo.words import results
from mha2gqa.verbs.inspect import words as inspection
from mha2gqa.verbs.uptrain import words as uptraining
from mha2gqa.verbs.uptrain.command import Training
from mha2gqa.verbs.verify import words as verification


def command(options: DemoOptions) -> None:
    """Run the tour, and print each result as it comes."""
    directory, tokens = options.directory, options.tokens
    console.print_report(inspection.summary(describe()))
    with console.waiting("converting and evaluating the reference checkpoint ..."):
        table = results(measure(directory, tokens))
    console.print_report([table])
    with console.bars(Training) as progress:
        recovered = recover(directory, tokens, progress)
    if recovered is not None:
        console.print_report(uptraining.summary(recovered))
    with console.bars(console.Bars) as progress:
        report = prove(directory, tokens, progress)
    console.print_report(verification.summary(report))
    console.print_page(directory)
