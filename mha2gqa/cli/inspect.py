"""`mha2gqa inspect`: its signature."""

from mha2gqa.cli import arguments
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.verbs.inspect.options import InspectOptions


@app.command()
def inspect(model: arguments.Model = None, as_json: arguments.AsJson = False) -> None:
    """Show what a checkpoint is, its KV cache for each possible G, and what convert would do."""
    with quick_imports():
        from mha2gqa import console
        from mha2gqa.verbs.inspect.run import inspect as run

    report = run(InspectOptions(model=model))
    console.print_json(report.to_json()) if as_json else console.print_inspection(report)
