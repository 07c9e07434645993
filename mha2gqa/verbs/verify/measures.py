"""What was measured of both models on the same text, as plain values; `metrics.py` computes them.

Losses and divergences are in nats a token.
"""

from dataclasses import dataclass

from mha2gqa.units import perplexity


@dataclass(frozen=True, kw_only=True)
class ComparedText:
    """The tokens that the models were compared on."""

    description: str
    """Where the text comes from, as a phrase: `held-out text of the reference checkpoint (18 files)`."""
    sampled: bool
    """Whether the original wrote it itself, because no text was given."""
    blocks: int
    """Number of blocks; each is read without those before it."""
    context: int
    """Tokens of a block."""
    tokens: int
    """Tokens that were compared: all but the first of each block, or all where the loss is not defined."""


@dataclass(frozen=True, kw_only=True)
class Cosines:
    """Cosine similarity of what two models without a head make of the same tokens."""

    mean: float
    """Of the embeddings of a block (the mean of its last hidden states over its tokens), mean over blocks."""
    least: float
    """Of the embeddings of a block, the least of all blocks."""
    tokens: float
    """Of the last hidden states of a token, mean over tokens."""
    largest_difference: float
    """Largest difference of a number of the last hidden states, over all tokens."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss of both models on the same tokens."""

    original: float
    """Mean loss of the original."""
    converted: float
    """Mean loss of the converted checkpoint."""
    interval: tuple[float, float] | None
    """95 % interval of `difference`, by a paired bootstrap over blocks; None when there is one block."""

    @property
    def difference(self) -> float:
        """Converted minus original, in nats a token."""
        return self.converted - self.original

    @property
    def perplexities(self) -> tuple[float, float]:
        """exp(loss) of the original and of the converted checkpoint."""
        return perplexity(self.original), perplexity(self.converted)

    @property
    def increase(self) -> float:
        """How much the perplexity grew, as a fraction of the original's."""
        return perplexity(self.difference) - 1


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL(original || converted) of the next-token distributions, token by token."""

    mean: float
    """Nats a token."""
    p99: float
    """The 99th percentile over tokens."""
    largest: float
    """The largest of any token."""
    edges: tuple[float, ...]
    """Edges of the histogram's bins, equally spaced in the logarithm; the outer bins take what lies outside."""
    counts: tuple[int, ...]
    """Tokens in each bin; one fewer than edges."""


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """The tokens of answers in conversations alone: what the model is used for, without what it is given."""

    tokens: int
    """How many were compared."""
    original: float
    """Mean loss of the original."""
    converted: float
    """Mean loss of the converted checkpoint."""
    kl: float
    """Mean KL(original || converted), nats a token."""
    top1: float
    """Share at which both find the same token most likely."""


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Mean loss of both models over a range of positions in a block."""

    first: int
    """First position of the range, in tokens read before the one that is predicted."""
    last: int
    """Last position of the range."""
    original: float
    """Nats a token."""
    converted: float
    """Nats a token."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far one attention module's output is from the original's, each model on its own inputs."""

    module: str
    """Name in the module tree."""
    error: float
    """||converted - original|| / ||original|| over all tokens."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What both models write after the same prompt, greedily."""

    prompt: str
    """The end of what both models read."""
    original: str
    """Continuation by the original."""
    converted: str
    """Continuation by the converted checkpoint."""
    agreed: int
    """Tokens before the first difference."""
    tokens: int
    """Tokens of the original's, to the end of its turn."""
    written: int
    """Tokens that each was asked for."""
