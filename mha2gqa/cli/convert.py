"""`mha2gqa convert`: its signature."""

from typing import cast

from mha2gqa.cli import arguments, parts
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.verbs.convert.options import ConvertOptions, Grouping, Refinement


@app.command()
def convert(
    groups: parts.Groups,
    model: arguments.Model = None,
    output: arguments.Output = None,
    attention: parts.Attention = None,
    method: arguments.Method = "mean",
    grouping: arguments.GroupingName = "contiguous",
    refine: arguments.RefinementName = None,
    data: arguments.CalibrationText = None,
    column: arguments.Column = None,
    tokens: arguments.CalibrationTokens = 262_144,
    context: arguments.Context = None,
    steps: arguments.Steps = 300,
    activation_memory: arguments.ActivationMemory = "8GB",
    max_ppl_increase: arguments.ContentIncrease = 0.01,
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    seed: arguments.Seed = 0,
    max_shard_size: arguments.ShardSize = None,
    force: arguments.Force = False,
    dry_run: arguments.DryRun = False,
    as_json: arguments.AsJson = False,
    config: arguments.Config = None,
) -> None:
    """Convert a checkpoint to fewer KV heads."""
    with quick_imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.verbs.convert.run import convert as run

    logging.disable_progress_bar()
    options = ConvertOptions(
        model=model,
        groups=parts.by_part(groups, attention),
        output=output,
        method=method,
        grouping=cast(Grouping, grouping),
        refine=cast(Refinement | None, refine),
        data=tuple(data or ()),
        column=column,
        tokens=tokens,
        context=context,
        steps=steps,
        activation_memory=activation_memory,
        max_ppl_increase=max_ppl_increase,
        dtype=dtype,
        device=device,
        seed=seed,
        max_shard_size=max_shard_size,
        force=force,
        dry_run=dry_run,
    )
    with console.conversion() as progress:
        report = run(options, progress)
    console.print_json(report.to_json()) if as_json else console.print_change(report)
