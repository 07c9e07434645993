"""`mha2gqa demo`: its signature."""

from pathlib import Path
from typing import Annotated

import typer

from mha2gqa.cli.app import app, quick_imports


@app.command()
def demo(
    directory: Annotated[Path, typer.Argument(help="Where the converted checkpoints go.")] = Path("demo"),
    tokens: Annotated[int, typer.Option(help="Tokens of held-out text to evaluate on.")] = 50_000,
) -> None:
    """Inspect, convert, uptrain and verify the reference checkpoint, and show what that saved and what it cost."""
    with quick_imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.verbs.demo.run import describe, measure, prove, recover

    logging.disable_progress_bar()
    console.print_inspection(describe())
    console.print_demo(measure(directory, tokens))
    with console.training(as_json=False) as progress:
        recovered = recover(directory, tokens, progress)
    if recovered is not None:
        console.print_uptraining(recovered)
    with console.stages() as progress:
        report = prove(directory, tokens, progress)
    console.print_verification(report)
    console.print_note(f"The page is {directory / 'report.html'}")
