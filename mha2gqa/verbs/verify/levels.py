"""What each level of `verify` found, as plain values; `outcome.py` has the report that they are parts of.

What was measured on text is in `measures.py`. Losses and divergences are in nats a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mha2gqa.verbs.verify.measures import (
    AnswerTokens,
    ComparedText,
    Continuation,
    Cosines,
    Divergence,
    LayerError,
    Loss,
    PositionLoss,
)
from mha2gqa.verbs.verify.options import Level


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with the converted checkpoint."""

    level: Level | Literal["engine"]
    """The level that found it."""
    guilty: str
    """Name of the tensor, file or config key, or of the check that failed."""
    problem: str
    """What is wrong with it, as one sentence without the name."""


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What every level says."""

    seconds: float
    """How long it took."""
    findings: tuple[Finding, ...]
    """One for each check that failed and each limit that is passed; empty when all is as it should be."""


@dataclass(frozen=True, kw_only=True)
class _Ran(_Judged):
    """What a level that runs models says."""

    dtype: str
    """In which the models were run, for example `float32`."""
    device: str
    """On which they were run, for example `cpu` or `cuda`."""


@dataclass(frozen=True, kw_only=True)
class _Read(_Ran):
    """What a level that has both models read the same tokens says."""

    text: ComparedText
    """What they read."""
    layers: tuple[LayerError, ...]
    """One for each attention module, in the order of the module tree."""


@dataclass(frozen=True, kw_only=True)
class FileLevel(_Judged):
    """The files, read as bytes; no model is loaded."""

    readable: bool
    """Whether the config and every weight file could be read at all."""
    compared: int
    """Tensors that are the original's byte for byte, compared with it."""
    recomputed: int
    """Changed tensors that were made again from the original and compared."""
    checksummed: int
    """Changed tensors that only the record's checksum speaks for: their method needs data."""
    files: int
    """Tokenizer and other small files that were compared byte for byte."""
    size: int
    """Bytes of the converted weights that were read."""
    witness: str = ""
    """What only the record speaks for, as a sentence; empty where everything was established by the original."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One named check of the load level."""

    name: str
    """What was checked, as a short phrase."""
    passed: bool | None
    """Whether it held; None where nothing was established, for a reason that lies in the original."""
    detail: str
    """The numbers that were seen, or the reason."""
    tolerance: float | None = None
    """Difference that rounding in the dtype of the run explains; None where nothing is rounded."""


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """KV cache of one sequence in one of the two models."""

    formula: int
    """Bytes a token adds, by the formula, in the dtype in which the model was run."""
    measured: int | None
    """Bytes a token added when the model was run; None where the class returns no cache to measure."""
    at: Mapping[int, int]
    """Context length in tokens -> bytes, by the formula; sliding windows keep no more than fits into them."""


@dataclass(frozen=True, kw_only=True)
class LoadLevel(_Ran):
    """Both models loaded and run by transformers' own class."""

    checks: tuple[Check, ...]
    """In the order in which they were made."""
    original_cache: CacheUse | None
    """None where the family keeps no KV cache."""
    converted_cache: CacheUse | None
    """None where the family keeps no KV cache, or the converted checkpoint does not load."""


@dataclass(frozen=True, kw_only=True)
class OutputsLevel(_Read):
    """Both models on the same tokens."""

    loss: Loss | None
    """None for masked language models, whose loss on unmasked text means nothing."""
    kl: Divergence
    """How far the distributions are apart."""
    top1: float
    """Share of tokens at which both find the same token most likely."""
    top5: float
    """Share of the original's five most likely tokens that are among the converted's five, mean over tokens."""
    largest_logit_difference: float
    """Over all tokens and the whole vocabulary."""
    positions: tuple[PositionLoss, ...]
    """Loss by position in the block; empty for masked language models."""
    continuations: tuple[Continuation, ...]
    """Side by side; empty where the class does not generate."""
    agreement: Mapping[int, float]
    """Tokens -> share of the prompts after which so many are the same; only lengths that were written."""
    answers: AnswerTokens | None = None
    """None where the text holds no conversations."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingsLevel(_Read):
    """What both models make of the same tokens, where they have no head and so no logits."""

    cosines: Cosines
    """How far their hidden states point the same way."""


@dataclass(frozen=True, kw_only=True)
class HeadLevel(_Read):
    """What both models' task heads give for the same tokens: labels, scores or spans."""

    gives: str
    """What the head gives, as a phrase: `3 labels for a text`."""
    kl: float | None
    """Mean KL(original || converted) of the distributions of labels (of places, for spans); None for scores."""
    same: float | None
    """Share of them with the same most likely label; None for scores."""
    error: float
    """||converted - original|| / ||original|| over all outputs."""
    largest_difference: float
    """Of an output."""


@dataclass(frozen=True, kw_only=True)
class EngineLevel(_Ran):
    """What an engine that others wrote makes of the converted checkpoint, beside what transformers makes of it."""

    name: str
    version: str
    """Of its package."""
    read: int
    """Random tokens that both read."""
    mean_difference: float
    """Of the logarithms of the probabilities of the engine's likeliest tokens after each, nats."""
    largest_difference: float
    """The largest of them."""
    written: int
    """Tokens that both wrote after that, greedily."""
    agreed: int
    """Tokens before the first that differs."""
    behind: float
    """How much less likely than transformers' best a token was that the engine wrote, at most, in nats."""
    cache: str
    """What the engine says of its cache; empty where it says nothing."""
    cache_measured: float | None
    """Bytes that a token takes by that; None where it does not follow."""
    cache_formula: int
    """The same by the formula, in the dtype in which the model was run."""
    unread_window: int | None = None
    """A window of layers that so many tokens do not fill, so that an engine which ignores it was not found out."""


Compared: TypeAlias = OutputsLevel | EmbeddingsLevel | HeadLevel
"""What the outputs level found, by the kind of the model."""
