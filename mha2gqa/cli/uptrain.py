"""`mha2gqa uptrain`: its signature."""

from typing import cast

import typer

from mha2gqa.cli import arguments
from mha2gqa.cli import uptrain_arguments as own
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.verbs.uptrain.options import Objective, Trained, UptrainOptions


@app.command()
def uptrain(
    given: typer.Context,
    converted: arguments.Converted = None,
    against: arguments.Against = None,
    output: arguments.Output = None,
    data: own.TrainingText = None,
    held_out: own.HeldOut = None,
    column: arguments.Column = None,
    source_column: own.SourceColumn = None,
    target_column: own.TargetColumn = None,
    source_prefix: own.SourcePrefix = None,
    source_lang: own.SourceLang = None,
    target_lang: own.TargetLang = None,
    context: arguments.Context = None,
    target_context: own.TargetContext = None,
    held_out_tokens: own.HeldOutTokens = 32_768,
    samples: own.Samples = None,
    steps: own.TrainingSteps = None,
    tokens: own.TrainingTokens = None,
    alpha: own.Alpha = None,
    pretraining_tokens: own.PretrainingTokens = None,
    train: own.Train = "attention",
    lora_rank: own.LoraRank = 16,
    objective: own.ObjectiveName = None,
    temperature: own.Temperature = 1.0,
    lm_weight: own.LmWeight = 0.5,
    hidden_weight: own.HiddenWeight = 0.0,
    trainer: own.TrainerKeys = None,
    best: own.Best = False,
    resume: own.Resume = False,
    seed: arguments.Seed = 0,
    max_shard_size: arguments.ShardSize = None,
    report: arguments.ReportDirectory = None,
    force: own.ForceRun = False,
    dry_run: arguments.DryRun = False,
    as_json: own.AsJsonLines = False,
    config: own.Recipe = None,
) -> None:
    """Train a converted checkpoint to win the original's quality back."""
    with quick_imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.verbs.uptrain.run import uptrain as run

    logging.disable_progress_bar()
    options = UptrainOptions(
        converted=converted,
        against=against,
        output=output,
        data=tuple(data or ()),
        held_out=tuple(held_out or ()),
        column=column,
        source_column=source_column,
        target_column=target_column,
        source_prefix=source_prefix,
        source_lang=source_lang,
        target_lang=target_lang,
        context=context,
        target_context=target_context,
        held_out_tokens=held_out_tokens,
        samples=samples,
        steps=steps,
        tokens=tokens,
        alpha=alpha,
        pretraining_tokens=pretraining_tokens,
        train=cast(Trained, train),
        lora_rank=lora_rank,
        objective=cast(Objective | None, objective),
        temperature=temperature,
        lm_weight=lm_weight,
        hidden_weight=hidden_weight,
        trainer={**given.meta.get(own.TRAINER, {}), **own.parse_trainer(trainer)},
        best=best,
        resume=resume,
        seed=seed,
        max_shard_size=max_shard_size,
        report=report,
        force=force,
        dry_run=dry_run,
    )
    with console.training(as_json=as_json) as progress:
        result = run(options, progress)
    if result is not None:
        console.print_json_line(result.to_json()) if as_json else console.print_uptraining(result)
