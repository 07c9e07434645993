"""Runs a model by transformers' own `generate`: greedy, with a dynamic or a static cache.

`generate` compiles the decode step of a static cache where the device has graphs (CUDA), so what is timed is what a
user gets. A cache is filled with random keys and values behind a few real tokens, because reading a long context on
a CPU takes minutes and its contents do not change the time of a step.

Legend: B sequences, T tokens.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache, StoppingCriteria
from transformers.cache_utils import CacheLayerMixin

from mha2gqa.verbs.bench.engine import Filled
from mha2gqa.verbs.verify.behaviour import held_bytes

Inputs: TypeAlias = dict[str, Any]
"""What `generate` is given."""
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
    """A decoder that transformers runs."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        self.model = model
        self._generator = torch.Generator().manual_seed(seed)

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds from a batch of prompts to the first new token of each."""
        inputs = self.prompts(batch, tokens)
        started = now(self.model.device)
        _, times = generate(self.model, 1, inputs)
        return times[0] - started

    def prompts(self, batch: int, tokens: int) -> Inputs:
        """Return a batch of prompts that were not read yet."""
        return going_on(self._random_ids(batch, tokens))

    @torch.no_grad()
    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "CachedBatch":
        """Return a batch with as many tokens in its cache, and room for `room` more."""
        ids_BT = self._random_ids(batch, filled.own + 1)
        cache = empty_cache(self.model, kind, filled.own + room)
        run: Any = self.model
        read = min(_READ, filled.own)
        run(ids_BT[:, :read], past_key_values=cache, use_cache=True)
        fill(cache, batch, filled.own - read)
        return CachedBatch(self.model, ids_BT, lambda ids: going_on(ids, past_key_values=cache), held_bytes(cache))

    def runs(self, batch: int, filled: Filled) -> bool:
        """Return whether a batch with as many tokens in its caches can be decoded without running out of memory."""
        try:
            self.start(batch, filled, "static", 3).turn(1)
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

    def __init__(
        self, model: PreTrainedModel, ids_BT: torch.Tensor, inputs: Callable[[torch.Tensor], Inputs], cache_bytes: int
    ) -> None:
        """Begin with the tokens `ids_BT`; `inputs` returns what `generate` needs to go on from some."""
        self._model, self._ids_BT, self._inputs = model, ids_BT, inputs
        self.cache_bytes = cache_bytes

    def turn(self, tokens: int) -> list[float]:
        """Decode one token that is not counted (`generate` sets itself up), and return the seconds of `tokens` more."""
        self._ids_BT, times = generate(self._model, tokens + 1, self._inputs(self._ids_BT))
        return [after - before for before, after in pairwise(times)]


def going_on(ids_BT: torch.Tensor, **more: Any) -> Inputs:
    """Return what a decoder goes on from: these tokens, all of them, and `more`."""
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), **more}


def generate(model: PreTrainedModel, tokens: int, inputs: Inputs) -> tuple[torch.Tensor, list[float]]:
    """Write `tokens` tokens greedily.

    Returns:
        All tokens, and the time at which each new one was there.
    """
    clock = Clock(model.device)
    run: Any = model.generate
    written_BT: torch.Tensor = run(**inputs, max_new_tokens=tokens, stopping_criteria=[clock])
    return written_BT, clock.times


def empty_cache(model: PreTrainedModel, kind: str, length: int) -> Cache:
    """Return a `dynamic` cache, or a `static` one for `length` tokens."""
    config = model.config.get_text_config(decoder=True)
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=length)


def fill(cache: Cache, batch: int, tokens: int) -> None:
    """Add `tokens` random keys and values to every attention layer of a cache that has seen some already."""
    for index, layer in enumerate(cache.layers):
        if tokens > 0 and isinstance(layer, CacheLayerMixin) and isinstance(layer.keys, torch.Tensor):
            keys, values = random_states(layer, batch, tokens)
            cache.update(keys, values, index)


def random_states(layer: Any, batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random keys and values of `tokens` tokens, as wide as those that a layer of a cache has seen."""
    return _random_like(layer.keys, batch, tokens), _random_like(layer.values, batch, tokens)


def _random_like(states: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """Return `[B, G, tokens, E]` random numbers, the same for every sequence: drawing them takes longer than a step."""
    one = torch.randn(1, states.shape[1], tokens, states.shape[3], dtype=states.dtype, device=states.device)
    return one.expand(batch, -1, -1, -1)
