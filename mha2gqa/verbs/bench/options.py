"""What can be asked of `bench`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CacheKind = Literal["dynamic", "static"]
Attention = Literal["eager", "sdpa", "grouped", "flash_attention_2"]
Engine = Literal["transformers", "vllm", "llama.cpp"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `bench`."""

    converted: Path | None = None
    """Directory of the converted checkpoint; None is the one directory here that carries a record."""
    against: str | None = None
    """Local directory or Hub id of the original; None is what the record names."""
    shape: str | None = None
    """Instead of checkpoints: a named shape or a `config.json`, with random weights."""
    groups: int | None = None
    """KV heads of the second model of a shape."""
    batch: tuple[int, ...] = (1, 8)
    """Sequences that are decoded at a time; each is measured with each context."""
    context: tuple[int, ...] = ()
    """Tokens in the cache before the first one is decoded, of an encoder-decoder those of the source; empty is 1024,
    4096 and 16384 as far as the model reads."""
    target_context: int | None = None
    """Of an encoder-decoder, tokens in the decoder's own cache before the first one is decoded; None is up to 32."""
    cache: tuple[CacheKind, ...] = ()
    """Caches to measure with; empty is both."""
    attention: Attention | None = None
    """Attention implementation; None is what transformers takes for the class."""
    tokens: int = 8
    """Tokens that each model decodes before the other has its turn."""
    turns: int = 5
    """Turns of each model that are measured; one more before them is not."""
    prefill_tokens: int | None = None
    """Tokens of a batch of prompts, at most; None is 1024 on a CPU and no limit on an accelerator."""
    memory: str | None = None
    """Memory that the largest batch may fill, such as `80GB`; None is what is free on the device."""
    engine: Engine = "transformers"
    """What runs the models."""
    dtype: str | None = None
    """Dtype to run in; None is the checkpoint's own on an accelerator, and float32 on a CPU."""
    device: str | None = None
    """Device to run on; None takes an accelerator when there is one."""
    seed: int = 0
    """Seed of random weights, tokens and cache contents."""
    report: Path | None = None
    """Directory to write the page into, as `report.html`; None writes none."""
