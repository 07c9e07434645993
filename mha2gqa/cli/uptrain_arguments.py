"""The options that only `uptrain` has, as types; `read_recipe` gives options their defaults from a YAML recipe."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mha2gqa.cli.arguments import at_least, one_of, one_of_or_none, read_defaults
from mha2gqa.verbs.uptrain.options import Objective, Trained

_TRAINED = get_args(Trained)
_OBJECTIVES = get_args(Objective)
TRAINER = "trainer"
"""Key of a recipe whose values are fields of transformers.TrainingArguments."""


def read_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of the other options from a recipe; its `trainer:` is kept for the command."""
    content = read_defaults(context, path, but=TRAINER)
    given = content.get(TRAINER) or {}
    if not isinstance(given, dict):
        raise typer.BadParameter(f"{path}: `{TRAINER}` must map fields of transformers.TrainingArguments to values")
    context.meta[TRAINER] = given
    return path


def parse_trainer(pairs: list[str] | None) -> dict[str, Any]:
    """Return `key=value` pairs as a mapping; values are YAML."""
    import yaml

    parsed: dict[str, Any] = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign:
            raise typer.BadParameter(f"--trainer {pair!r} is not of the form key=value")
        try:
            parsed[key.strip()] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"--trainer {pair!r} cannot be read: {error}") from error
    return parsed


def _number(value: Any) -> Any:
    """Return a number where YAML reads a string: `1e-3` has no dot."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Recipe = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML recipe: these options, and `trainer:` for transformers.TrainingArguments.",
        callback=read_recipe,
        is_eager=True,
    ),
]
TrainingText = Annotated[
    list[str] | None,
    typer.Option(help="Text, jsonl, csv, parquet, Hub data set, or `self`; repeatable. Default: the reference's own."),
]
HeldOut = Annotated[
    list[str] | None, typer.Option(help="Text to measure on; repeatable. Default: a twentieth of --data.")
]
SourceColumn = Annotated[str | None, typer.Option(help="Encoder-decoders: column of tables that the encoder reads.")]
TargetColumn = Annotated[str | None, typer.Option(help="Encoder-decoders: column that the decoder is to answer.")]
SourcePrefix = Annotated[str | None, typer.Option(help="What stands before every source, such as 'summarize: '.")]
SourceLang = Annotated[str | None, typer.Option(help="Language of sources, where the tokenizer knows several.")]
TargetLang = Annotated[str | None, typer.Option(help="Language of targets, where the tokenizer knows several.")]
TargetContext = Annotated[int | None, typer.Option(help="Tokens of a target, at most. Default: up to 128.")]
HeldOutTokens = Annotated[
    int, typer.Option(parser=at_least(2), metavar="N", help="Tokens to measure on, at most: 32768, 50K.")
]
Samples = Annotated[Path | None, typer.Option(help="File for the text of --data self, to keep and to use again.")]
TrainingSteps = Annotated[int | None, typer.Option("--steps", help="Length in optimiser steps.")]
TrainingTokens = Annotated[str | None, typer.Option("--tokens", help="Length in tokens, such as 20M.")]
Alpha = Annotated[float | None, typer.Option(help="Length as a fraction of the original's pre-training.")]
PretrainingTokens = Annotated[
    str | None, typer.Option(help="Tokens of that pre-training, such as 2T; known for the reference.")
]
Train = Annotated[str, typer.Option(help="What trains.", metavar="|".join(_TRAINED), callback=one_of(_TRAINED))]
LoraRank = Annotated[int, typer.Option(help="Rank of the adapter of --train lora.")]
ObjectiveName = Annotated[
    str | None,
    typer.Option(
        help="What is learned: the original's distributions, the text, or both. Default: distil with the original.",
        metavar="|".join(_OBJECTIVES),
        callback=one_of_or_none(_OBJECTIVES),
    ),
]
Temperature = Annotated[float, typer.Option(help="Of the softmaxes of distil and mix.")]
LmWeight = Annotated[float, typer.Option(help="Weight of the text in mix.")]
HiddenWeight = Annotated[float, typer.Option(help="Weight of the layers' outputs in distil and mix.")]
TrainerKeys = Annotated[
    list[str] | None,
    typer.Option("--trainer", metavar="KEY=VALUE", help="A field of transformers.TrainingArguments; repeatable."),
]
Best = Annotated[bool, typer.Option("--best", help="Keep the weights with the least held-out loss.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted or killed.")]
ForceRun = Annotated[bool, typer.Option("--force", help="Replace an earlier output, and an interrupted run.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print JSON lines while it runs; the last is the report.")]
