"""What can be asked of `uptrain`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Trained = Literal["attention", "all", "kv", "lora"]
Objective = Literal["distil", "lm", "mix"]


@dataclass(frozen=True, kw_only=True)
class UptrainOptions:
    """Options of `uptrain`; exactly one of `steps`, `tokens` and `alpha` is given."""

    converted: Path | None = None
    """Directory of the converted checkpoint; None is the one directory here that carries a record."""
    against: str | None = None
    """Local directory or Hub id of the original; None is what the record names."""
    output: Path | None = None
    """Directory to create; None is `./<name>-uptrained`."""
    data: tuple[str, ...] = ()
    """Training text: files, Hub data sets, or `self` for text that the original writes. Empty is the training text of
    the reference checkpoint. For an encoder-decoder tables of sources and targets."""
    held_out: tuple[str, ...] = ()
    """Text to measure on, which training does not see; empty keeps a part of the training text aside."""
    column: str | None = None
    """Column of tables that holds the text; None takes `text`, else the only one with strings."""
    source_column: str | None = None
    """Column of what an encoder reads (`translation.en` is one inside another); None takes `source`, else the first of
    the only two with strings."""
    target_column: str | None = None
    """Column of what its decoder is to answer; None takes `target`, else the second."""
    source_prefix: str | None = None
    """What stands before every source, such as `summarize: `."""
    source_lang: str | None = None
    """Language of the sources, for a tokenizer of many languages, in its own spelling."""
    target_lang: str | None = None
    """Language of the targets."""
    context: int | None = None
    """Tokens of a block, or of a source at most; None is as many as the model reads, up to 2048, or 512 of a source."""
    target_context: int | None = None
    """Tokens of a target, at most; None is as many as the model reads, up to 128."""
    held_out_tokens: int = 32_768
    """Tokens to measure on, at most."""
    samples: Path | None = None
    """Where the text of `--data self` is written, and read again; None is the workspace, which goes with the run."""
    steps: int | None = None
    """Optimiser steps."""
    tokens: str | None = None
    """Tokens to train on, for example `20M`."""
    alpha: float | None = None
    """Fraction of the original's pre-training, as in the GQA paper."""
    pretraining_tokens: str | None = None
    """Tokens of the original's pre-training, for example `2T`; known for the reference checkpoint."""
    train: Trained = "attention"
    """What trains: the converted attention modules, everything, only what holds keys and values, or an adapter."""
    lora_rank: int = 16
    """Rank of the adapter of `lora`; its scale (alpha) is twice as much."""
    objective: Objective | None = None
    """What is learned: the original's distributions, the text, or both; None is `distil`, or `lm` without original."""
    temperature: float = 1.0
    """Of both softmaxes in the divergence of `distil` and `mix`."""
    lm_weight: float = 0.5
    """Weight of the text's cross-entropy in `mix`; the divergence has the rest."""
    hidden_weight: float = 0.0
    """Weight of the relative squared error of the layers' outputs, in `distil` and `mix`."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of transformers.TrainingArguments, passed through as they are."""
    best: bool = False
    """Keep the weights with the least held-out loss instead of the last ones."""
    resume: bool = False
    """Go on with a run that was interrupted or killed."""
    seed: int = 0
    """Seed of everything that draws numbers."""
    max_shard_size: str | None = None
    """Largest weight file, for example `5GB`; None keeps the division into files."""
    report: Path | None = None
    """Directory to write the page into, as `report.html`; None writes none."""
    force: bool = False
    """Replace an output of an earlier run, and what an interrupted one has left."""
    dry_run: bool = False
    """Plan and check, train and write nothing."""
