"""What `bench` returns: times of two models side by side, and the limits that bytes set to them.

Times are in seconds, sizes in bytes. A ratio is original through converted: 2 is twice as fast.
Nothing is computed here beyond what follows from the fields.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SPREAD_BOUND = 0.15
"""Range of the middle half of the times, as a share of their median, above which a row is called disturbed."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of one model at one point."""

    median: float
    low: float
    """A quarter of the times are shorter."""
    high: float
    """A quarter of the times are longer."""
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """Return the median and the quartiles of at least one time."""
        several = [*seconds, *seconds] if len(seconds) == 1 else list(seconds)
        low, median, high = statistics.quantiles(several, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, count=len(seconds))

    @property
    def spread(self) -> float:
        """Range of the middle half, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast the converted model is, from turns that follow one another."""

    median: float
    low: float
    """The smallest of the turns."""
    high: float
    """The largest of the turns."""


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """Both models at one point."""

    batch: int
    original: Times
    converted: Times
    ratio: Ratio

    @property
    def disturbed(self) -> bool:
        """Whether the times spread too much to be relied on."""
        return max(self.original.spread, self.converted.spread) > SPREAD_BOUND


@dataclass(frozen=True, kw_only=True)
class Decode(_Compared):
    """Decoding at one point of the grid; the times are of one step: one token for each sequence."""

    context: int
    """Tokens in the cache before the first one is decoded; of an encoder-decoder those of the source."""
    cache: str
    """`dynamic`, `static`, or the engine's own."""
    step_bytes: tuple[int, int]
    """What a step must move at least, original and converted: weights once, and the cache of the batch."""
    cache_bytes: tuple[int, int]
    """The cache of the batch by formula, original and converted, for as many tokens as it has room for."""
    cache_measured: tuple[int | None, int | None]
    """What the tensors of the cache hold; None where the engine does not say."""
    reason: str = ""
    """Why it is not nearly as much faster as its bytes allow; empty where it is."""

    @property
    def limit(self) -> float:
        """The ratio of the bytes, which the ratio of the times would be if nothing else took time."""
        before, after = self.step_bytes
        return before / after

    @property
    def rates(self) -> tuple[float, float]:
        """Bytes that a step must move through its time, in bytes a second, original and converted."""
        before, after = self.step_bytes
        return before / self.original.median, after / self.converted.median


@dataclass(frozen=True, kw_only=True)
class Prefill(_Compared):
    """Reading a batch of prompts, or of sources, into an empty cache, up to the first new token."""

    tokens: int
    """Of each prompt, or source."""
    chunk: int | None = None
    """Tokens that are read at a time; None reads them all at once."""
    peak: tuple[int | None, int | None] = (None, None)
    """The most bytes that the cache occupied meanwhile, original and converted; None where the engine does not say."""

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens a second, original and converted."""
        read = self.batch * self.tokens
        return read / self.original.median, read / self.converted.median


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The largest batch that fits into memory at one length of context, or of source."""

    context: int
    original: int
    """By the bytes of weights and cache."""
    converted: int
    tried: tuple[int, int] | None
    """The largest that ran, original and converted; None on a CPU, where running out of memory ends more than us."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models."""

    name: str
    kv_heads: int
    """That are cached; the largest number, where layers differ; 0 for a latent that all heads share."""
    parameters: int
    weights: int
    """Bytes of all weights."""
    cache_per_token: int
    """Bytes that a token adds to the cache of one sequence, while no window is full."""
    cross_cache_per_token: int
    """Bytes that a token of a source takes in the cache of cross-attention; 0 without an encoder."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how everything was run."""

    engine: str
    device: str
    """Name of the processor that ran it."""
    dtype: str
    attention: str
    compiled: bool
    """Whether decoding with a static cache is compiled, with CUDA graphs where there are any."""
    threads: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    memory: int
    """What the largest batch may fill."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The report of `bench`."""

    model_type: str
    random_weights: bool
    """Whether the models are a shape with random weights."""
    target_context: int | None
    """Tokens in an encoder-decoder's own cache before the first one is decoded, whose contexts are the lengths of
    sources; None without an encoder."""
    original: Side
    converted: Side
    setting: Setting
    decode: tuple[Decode, ...]
    prefill: tuple[Prefill, ...]
    fits: tuple[Fit, ...]
    seconds: float

    @property
    def context_name(self) -> str:
        """What the contexts are lengths of."""
        return "context" if self.target_context is None else "source"

    @property
    def disturbed(self) -> int:
        """How many rows are disturbed."""
        return sum(row.disturbed for row in self.decode) + sum(row.disturbed for row in self.prefill)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, with what follows from the fields."""
        content = asdict(self)
        for row, plain in zip(self.decode, content["decode"], strict=True):
            plain |= {"limit": row.limit, "disturbed": row.disturbed, "bytes_per_second": row.rates}
        for prompt, plain in zip(self.prefill, content["prefill"], strict=True):
            plain |= {"disturbed": prompt.disturbed, "tokens_per_second": prompt.rates}
        return content | {"spread_bound": SPREAD_BOUND}
