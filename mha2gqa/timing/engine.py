"""What runs a model: the few things that measuring asks of it.

Each engine is a module that knows one library; `measure.py` knows none of them.
"""

from typing import Protocol


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
        """Return the seconds from a batch of prompts to the first new token of each."""

    def start(self, batch: int, context: int, kind: str, room: int) -> Decoding:
        """Return a batch with `context` tokens in its cache, and room for `room` more."""
