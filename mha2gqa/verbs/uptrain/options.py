"""What can be asked of `uptrain`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mha2gqa.errors import OptionError
from mha2gqa.options import Defaults, Option, Options, at_least
from mha2gqa.verbs.options import (
    Against,
    Column,
    Context,
    Converted,
    DryRun,
    Page,
    Private,
    PushToHub,
    Seed,
    ShardSize,
    check_private,
)

Trained = Literal["attention", "all", "kv", "lora"]
Objective = Literal["distil", "lm", "mix"]
Learned = Literal["answers", "all"]
Kept = Literal["best", "last"]


def _trainer(value: Any) -> dict[str, Any]:
    """Read a mapping, or `key=value` texts whose values are YAML."""
    if isinstance(value, Mapping):
        return dict(value)
    if not (isinstance(value, list | tuple) and all(isinstance(pair, str) for pair in value)):
        raise ValueError("must map fields of transformers.TrainingArguments to values")
    return dict(map(_pair, value))


def _pair(pair: str) -> tuple[str, Any]:
    import yaml

    key, sign, text = pair.partition("=")
    if not sign:
        raise OptionError(f"--trainer {pair!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"--trainer {pair!r} cannot be read: {error}") from error
    try:
        return key.strip(), float(value) if isinstance(value, str) else value  # `1e-3` has no dot: a string to YAML
    except ValueError:
        return key.strip(), value


@dataclass(frozen=True, kw_only=True)
class UptrainOptions(Options):
    """Train a converted checkpoint to recover lost quality.

    Exactly one of `steps`, `tokens` and `alpha` is given.
    """

    converted: Converted = None
    against: Against = None
    output: Annotated[Path | None, Option("Directory to create.", flags=("--output", "-o"))] = None
    """Directory to create; None is `./<name>-uptrained`."""
    data: Annotated[
        tuple[str, ...],
        Option(
            "Text, jsonl, csv, parquet, Hub data set, or `self`; repeatable. Default: the reference's own.",
            is_repeatable=True,
        ),
    ] = ()
    """Training text: files, Hub data sets, or `self` for text that the original writes. Empty is the training text of
    the reference checkpoint. For an encoder-decoder tables of sources and targets."""
    held_out: Annotated[
        tuple[str, ...],
        Option("Text to measure on; repeatable. Default: a twentieth of --data.", is_repeatable=True),
    ] = ()
    """Text to measure on, which training does not see; empty keeps a part of the training text aside."""
    column: Column = None
    source_column: Annotated[str | None, Option("Encoder-decoders: column of tables that the encoder reads.")] = None
    """Column of what an encoder reads (`translation.en` is one inside another); None takes `source`, else the first of
    the only two with strings."""
    target_column: Annotated[str | None, Option("Encoder-decoders: column that the decoder is to answer.")] = None
    """Column of what its decoder is to answer; None takes `target`, else the second."""
    source_prefix: Annotated[str | None, Option("What stands before every source, such as 'summarize: '.")] = None
    source_lang: Annotated[str | None, Option("Language of sources, where the tokenizer knows several.")] = None
    """Language of the sources, for a tokenizer of many languages, in its own spelling."""
    target_lang: Annotated[str | None, Option("Language of targets, where the tokenizer knows several.")] = None
    context: Context = None
    """Tokens of a block, or of a source at most; None is as many as the model reads, up to 2048, or 512 of a source."""
    target_context: Annotated[int | None, Option("Tokens of a target, at most. Default: up to 128.")] = None
    held_out_tokens: Annotated[
        int | None,
        Option(
            "Tokens to measure on, at most. Default: a 16th of the run's, 4096 to 32768.",
            parse=at_least(2),
            metavar="N",
        ),
    ] = None
    """Tokens to measure on, at most; None is few enough to take little of the run's time."""
    samples: Annotated[Path | None, Option("File for the text of --data self, to keep and to use again.")] = None
    """Where the text of `--data self` is written, and read again; None is the workspace, which goes with the run."""
    steps: Annotated[int | None, Option("Length in optimiser steps.")] = None
    tokens: Annotated[str | None, Option("Length in tokens, such as 20M.")] = None
    alpha: Annotated[float | None, Option("Length as a fraction of the original's pre-training.")] = None
    pretraining_tokens: Annotated[
        str | None, Option("Tokens of that pre-training, such as 2T; known for the reference.")
    ] = None
    train: Annotated[Trained, Option("What trains.")] = "attention"
    """What trains: the converted attention modules, everything, only what holds keys and values, or an adapter."""
    lora_rank: Annotated[int, Option("Rank of the adapter of --train lora.", most=4096)] = 16
    """Rank of the adapter of `lora`; its scale (alpha) is twice as much."""
    objective: Annotated[
        Objective | None,
        Option("What is learned: the original's distributions, the text, or both. Default: distil with the original."),
    ] = None
    """What is learned: the original's distributions, the text, or both; None is `distil`, or `lm` without original."""
    learn_from: Annotated[
        Learned | None,
        Option("Which tokens of conversations. Default: of prompts with completions the answer, of messages all."),
    ] = None
    """Which tokens of conversations are learned from, and measured: the answers alone, or all; None takes the answers
    where rows have a column of their own for them, as TRL does. Of running text it is always all."""
    temperature: Annotated[float, Option("Of the softmaxes of distil and mix.")] = 1.0
    lm_weight: Annotated[float, Option("Weight of the text in mix.")] = 0.5
    """Weight of the text's cross-entropy in `mix`; the divergence has the rest."""
    hidden_weight: Annotated[float, Option("Weight of the layers' outputs in distil and mix.")] = 0.0
    """Weight of the relative squared error of the layers' outputs, in `distil` and `mix`."""
    trainer: Annotated[
        Mapping[str, Any],
        Option(
            "A field of transformers.TrainingArguments; repeatable.",
            parse=_trainer,
            metavar="KEY=VALUE",
            is_repeatable=True,
        ),
    ] = field(default_factory=dict)
    keep: Annotated[Kept, Option("Weights to keep: of the least held-out loss, the start among them, or the last.")] = (
        "best"
    )
    resume: Annotated[bool, Option("Go on with a run that was interrupted or killed.")] = False
    seed: Seed = 0
    max_shard_size: ShardSize = None
    report: Page = None
    push_to_hub: PushToHub = None
    private: Private = False
    force: Annotated[bool, Option("Replace an earlier output, and an interrupted run.")] = False
    dry_run: DryRun = False
    as_json: ClassVar[
        Annotated[bool, Option("Print JSON lines while it runs; the last is the report.", flags=("--json",))]
    ] = False
    config: ClassVar[
        Annotated[
            Path | None,
            Defaults("YAML recipe: these options, and `trainer:` for transformers.TrainingArguments."),
        ]
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_private(self.push_to_hub, private=self.private)
