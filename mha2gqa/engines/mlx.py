"""MLX, by the package mlx-lm: Apple's processors, and any CPU (`mlx[cpu]`)."""

import time
from collections.abc import Sequence
from typing import Any

from mha2gqa.engines import Cache, Setup
from mha2gqa.errors import EngineError

_KEYS = 4
"""Dimensions of keys and values: sequences, heads, tokens, width."""


class Mlx:
    """A model that MLX runs, in the dtype of its files."""

    def __init__(self, setup: Setup) -> None:
        """Load a checkpoint.

        Raises:
            EngineError: mlx-lm has no class for it, or the class does not take its files.
        """
        import mlx.core
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model

        try:
            self._model, _ = load_model(setup.directory)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"MLX does not load {setup.directory} ({reason})") from error
        self._mx: Any = mlx.core
        self._model.set_dtype(getattr(mlx.core, setup.dtype))
        self._new_cache = make_prompt_cache
        self._last: Any = None

    def _logarithms(self, ids: Sequence[int], cache: Any) -> Any:
        """Return the logarithms of the probabilities of all tokens after each of `ids`: `[T, V]`."""
        logits_TV = self._model(self._mx.array(list(ids))[None], cache=cache)[0].astype(self._mx.float32)
        self._last = cache
        return logits_TV - self._mx.logsumexp(logits_TV, axis=-1, keepdims=True)

    def follow(self, ids: Sequence[int], top: int) -> list[dict[int, float]]:
        """Return the logarithms of the probabilities of the `top` likeliest tokens after each of `ids`."""
        rows = self._logarithms(ids, self._new_cache(self._model)).tolist()
        likely = [sorted(range(len(row)), key=row.__getitem__)[-top:] for row in rows]
        return [{token: row[token] for token in best} for row, best in zip(rows, likely, strict=True)]

    def write(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Return the tokens that follow greedily, whatever ends a text."""
        cache, written, read = self._new_cache(self._model), [], list(ids)
        for _ in range(tokens):
            read = [int(self._mx.argmax(self._logarithms(read, cache)[-1]))]
            written += read
        return written

    def seconds(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Return how long `new` tokens of each of the prompts take, one after the other."""
        started = time.perf_counter()
        for ids in prompts:
            self.write(ids, new)
        return time.perf_counter() - started

    def close(self) -> None:
        """Let go of the model."""
        del self._model

    def cache(self, printed: str) -> Cache:
        """Return the size of the cache of the last text, of which it prints nothing itself; it has room for more."""
        states = [one for layer in self._last for one in layer.state if isinstance(one, self._mx.array)]
        kept = [one for one in states if one.ndim == _KEYS]
        size, room = sum(one.nbytes for one in kept), max(one.shape[2] for one in kept)
        return Cache(f"{size:,} bytes, room for {room} tokens", sum(one.nbytes / one.shape[2] for one in kept))
