"""`mha2gqa expand`: its signature."""

from pathlib import Path
from typing import Annotated

import typer

from mha2gqa.cli import arguments
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.verbs.convert.options import ExpandOptions


@app.command()
def expand(
    model: Annotated[str, typer.Argument(help="Directory or Hub id (org/name, org/name@revision).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to create.")],
    heads: Annotated[int | None, typer.Option(help="KV heads of the result. Default: one per query head.")] = None,
    max_shard_size: arguments.ShardSize = None,
    force: arguments.Force = False,
    dry_run: arguments.DryRun = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Repeat the KV heads of a checkpoint, without loss."""
    with quick_imports():
        from mha2gqa import console
        from mha2gqa.verbs.expand.run import expand as run

    options = ExpandOptions(
        model=model, heads=heads, output=output, max_shard_size=max_shard_size, force=force, dry_run=dry_run
    )
    with console.progress_bar("expanding") as progress:
        report = run(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_change(report)
