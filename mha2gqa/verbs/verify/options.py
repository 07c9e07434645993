"""What can be asked of `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["file", "load", "outputs"]


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of `verify`."""

    converted: Path | None = None
    """Directory of the converted checkpoint; None is the one directory here that carries a record."""
    against: str | None = None
    """Local directory or Hub id of the original; None is what the record names."""
    data: tuple[str, ...] = ()
    """Text to compare the outputs on: files, Hub data sets, or `self` for text that the original writes; empty is the
    held-out text for the reference checkpoint, and `self` for any other."""
    column: str | None = None
    """Column of tables that holds the text; None takes `text`, else the only one with strings."""
    tokens: int = 32_768
    """Tokens to compare the outputs on, at most."""
    context: int | None = None
    """Tokens of a block; None is as many as the model reads, up to 2048."""
    batch_size: int | None = None
    """Blocks that are run at a time; None is as many as 2048 tokens hold, and at least one."""
    levels: tuple[Level, ...] = ("file", "load", "outputs")
    """What to verify."""
    max_ppl_increase: float | None = None
    """Largest increase of the perplexity, as a fraction; None is 0.01, or what suits the conversion."""
    max_kl: float | None = None
    """Largest mean KL divergence in nats a token; None is 0.05, or what suits the conversion."""
    min_top1: float | None = None
    """Least share of tokens with the same most likely token; None is 0.9, or what suits the conversion."""
    min_cosine: float | None = None
    """Least mean cosine of the embeddings of models without a head; None is 0.99, or what suits the conversion."""
    dtype: str | None = None
    """Dtype to run the models in; None is the checkpoint's own on an accelerator, and float32 on a CPU."""
    device: str | None = None
    """Device to run the models on; None takes an accelerator when there is one."""
    seed: int = 0
    """Seed of the sampled text and of the bootstrap."""
    tasks: tuple[str, ...] = ()
    """Benchmarks of lm-evaluation-harness to score both models on: tasks, groups, tags, or patterns with `*`."""
    task_path: Path | None = None
    """Directory of further task definitions in the harness's YAML."""
    report: Path | None = None
    """Directory to write the page into, as `report.html`; None writes none."""
    write_card: bool = False
    """Add the measured numbers to the converted checkpoint's card."""
