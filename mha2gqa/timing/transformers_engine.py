"""Runs a model by transformers' own `generate`: greedy, with a dynamic or a static cache.

`generate` compiles the decode step of a static cache where the device has graphs (CUDA), so what is timed is what a
user gets. A cache is filled with random keys and values behind a few real tokens, because reading a long context on
a CPU takes minutes and its contents do not change the time of a step.

Legend: B sequences, T tokens.
"""

import time
from itertools import pairwise
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache, StoppingCriteria
from transformers.cache_utils import CacheLayerMixin

from mha2gqa.evaluation.behaviour import held_bytes

_READ = 4
"""Tokens that are read for real before a cache is filled: enough for state that is no cache (convolutions)."""


class Clock(StoppingCriteria):
    """Notes the time after each token; stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Note the time once everything that was asked of the device is done."""
        self.times.append(now(self._device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Return the time once the device has nothing left to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class TransformersEngine:
    """A model that transformers runs."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        self.model = model
        self._generator = torch.Generator().manual_seed(seed)

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds from a batch of prompts to the first new token of each."""
        ids_BT = self._random_ids(batch, tokens)
        started = now(self.model.device)
        _, times = generate(self.model, ids_BT, None, 1)
        return times[0] - started

    @torch.no_grad()
    def start(self, batch: int, context: int, kind: str, room: int) -> "CachedBatch":
        """Return a batch with `context` tokens in its cache, and room for `room` more."""
        ids_BT = self._random_ids(batch, context + 1)
        cache = empty_cache(self.model, kind, context + room)
        run: Any = self.model
        read = min(_READ, context)
        run(ids_BT[:, :read], past_key_values=cache, use_cache=True)
        fill(cache, batch, context - read)
        return CachedBatch(self.model, cache, ids_BT)

    def runs(self, batch: int, context: int) -> bool:
        """Return whether a batch of `context` tokens can be decoded without running out of memory."""
        try:
            self.start(batch, context, "static", 3).turn(1)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.accelerator.memory.empty_cache()
        return True

    def _random_ids(self, batch: int, tokens: int) -> torch.Tensor:
        size = self.model.config.get_text_config(decoder=True).vocab_size
        return torch.randint(size, (batch, tokens), generator=self._generator).to(self.model.device)


class CachedBatch:
    """Sequences of which all tokens but the last are in the cache."""

    def __init__(self, model: PreTrainedModel, cache: Cache, ids_BT: torch.Tensor) -> None:
        self._model, self._cache, self._ids_BT = model, cache, ids_BT
        self.cache_bytes = held_bytes(cache)

    def turn(self, tokens: int) -> list[float]:
        """Decode one token that is not counted (`generate` sets itself up), and return the seconds of `tokens` more."""
        self._ids_BT, times = generate(self._model, self._ids_BT, self._cache, tokens + 1)
        return [after - before for before, after in pairwise(times)]


def generate(
    model: PreTrainedModel, ids_BT: torch.Tensor, cache: Cache | None, tokens: int
) -> tuple[torch.Tensor, list[float]]:
    """Write `tokens` tokens greedily.

    Returns:
        All tokens, and the time at which each new one was there.
    """
    clock = Clock(model.device)
    run: Any = model.generate
    options: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
    written_BT: torch.Tensor = run(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=tokens,
        stopping_criteria=[clock],
        **options,
    )
    return written_BT, clock.times


def empty_cache(model: PreTrainedModel, kind: str, length: int) -> Cache:
    """Return a `dynamic` cache, or a `static` one for `length` tokens."""
    config = model.config.get_text_config(decoder=True)
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=length)


def fill(cache: Cache, batch: int, tokens: int) -> None:
    """Add `tokens` random keys and values to every attention layer of a cache that has seen some already."""
    for index, layer in enumerate(cache.layers):
        if tokens > 0 and isinstance(layer, CacheLayerMixin) and isinstance(layer.keys, torch.Tensor):
            keys, values = (_random_like(one, batch, tokens) for one in _states(layer))
            cache.update(keys, values, index)


def _states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.keys, layer.values


def _random_like(states: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """Return `[B, G, tokens, E]` random numbers, the same for every sequence: drawing them takes longer than a step."""
    one = torch.randn(1, states.shape[1], tokens, states.shape[3], dtype=states.dtype, device=states.device)
    return one.expand(batch, -1, -1, -1)
