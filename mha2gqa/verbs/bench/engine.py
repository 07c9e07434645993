"""What runs a model: the few things that measuring asks of it.

Each engine is a class that knows one library; `run.py` knows none of them.
"""

from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True)
class Filled:
    """Tokens that the caches of a sequence hold when decoding begins."""

    own: int
    """Of the decoder itself."""
    source: int = 0
    """That an encoder has read; 0 without one."""

    @property
    def context(self) -> int:
        """The tokens that `--context` names: a decoder's own, or those of a source."""
        return self.source or self.own

    def with_room(self, tokens: int) -> "Filled":
        """Return it with `tokens` more of the decoder; a source does not grow."""
        return replace(self, own=self.own + tokens)


class Decoding(Protocol):
    """A batch of sequences with a filled cache."""

    @property
    def cache_bytes(self) -> int | None:
        """Bytes that the cache takes; None where the engine does not say."""

    def turn(self, tokens: int) -> list[float]:
        """Decode `tokens` tokens of each sequence greedily, and return the seconds of each step, or their mean."""


class Engine(Protocol):
    """A loaded model."""

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds from a batch of prompts, or of sources, to the first new token of each."""

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> Decoding:
        """Return a batch with as many tokens in its caches, and room for `room` more of the decoder."""
