"""Runs a model by transformers' own `generate`: greedy, with a dynamic or a static cache.

`generate` compiles the decode step of a static cache where the device has graphs (CUDA), so what is timed is what a
user gets. A cache is filled with random keys and values behind a few real tokens, because reading a long context on
a CPU takes minutes and its contents do not change the time of a step.

An encoder-decoder has a cache for each kind of attention. When decoding begins, that of cross-attention holds the
tokens of a source, and the decoder's own those of a target; both are filled, and no encoder runs. `generate` is given
the caches also where a source is read: that of transformers 5.23 makes them of as many layers as a T5's encoder has.

Legend: B sequences, T tokens, of a target where there is a source, S tokens of a source, D width of the encoder's
output.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache, StoppingCriteria
from transformers.cache_utils import CacheLayerMixin, StaticLayer
from transformers.modeling_outputs import BaseModelOutput

from mha2gqa.verbs.bench.limits import Filled
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

    def prefill(self, batch: int, tokens: int, chunk: int | None = None) -> float:
        """Return the seconds from a batch of prompts to the first new token of each."""
        inputs = self.prompts(batch, tokens)
        started = now(self.model.device)
        _, times = generate(self.model, 1, inputs, chunk)
        return times[0] - started

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        """Return the most bytes that a dynamic cache occupies while a batch of prompts is read."""
        cache = WatchedCache(config=self.model.config.get_text_config(decoder=True))
        generate(self.model, 1, self.prompts(batch, tokens) | {"past_key_values": cache}, chunk)
        return cache.peak

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
        fill(cache, batch, filled.own - read, cache)
        return CachedBatch(self.model, ids_BT, lambda ids: going_on(ids, past_key_values=cache), held_bytes(cache))

    def runs(self, batch: int, filled: Filled) -> bool:
        """Return whether a batch with as many tokens in its caches can be decoded without running out of memory."""
        try:  # not compiled, which every other batch would be anew: graphs hold little beside weights and cache
            self.start(batch, filled, "static", 3).turn(1, disable_compile=True)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.accelerator.memory.empty_cache()
        return True

    def _random_ids(self, batch: int, tokens: int, size: int | None = None) -> torch.Tensor:
        """Return tokens below `size`, or of the decoder's."""
        size = size or self.model.config.get_text_config(decoder=True).vocab_size
        return torch.randint(size, (batch, tokens), generator=self._generator).to(self.model.device)


class EncoderDecoderEngine(TransformersEngine):
    """An encoder-decoder that transformers runs."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__(model, seed)
        settings: Any = model.generation_config
        if settings.decoder_start_token_id is None:  # random weights have none
            settings.decoder_start_token_id = settings.bos_token_id or 0

    def prompts(self, batch: int, tokens: int) -> Inputs:
        """Return a batch of sources that were not read yet."""
        encoder: Any = self.model.get_encoder()
        ids_BS = self._random_ids(batch, tokens, encoder.get_input_embeddings().num_embeddings)
        cache = EncoderDecoderCache(empty_cache(self.model, "dynamic", 0), DynamicCache())
        return {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS), "past_key_values": cache}

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        """Return None: a source is read by the encoder, which caches nothing."""
        return None

    @torch.no_grad()
    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "CachedBatch":
        """Return a batch with as many tokens in its caches, and room for `room` more of the target."""
        ids_BT = self._random_ids(batch, filled.own + 1)
        ids_BT[:, 0] = self.model.generation_config.decoder_start_token_id  # `generate` puts it before what has none
        seen = self._seen(ids_BT[:1, :1])
        layers = len(seen.cross_attention_cache.layers)
        own, cross = empty_cache(self.model, kind, filled.own + room), _cross_cache(layers, kind, filled.source)
        fill(own, batch, filled.own, seen.self_attention_cache)
        fill(cross, batch, filled.source, seen.cross_attention_cache)
        known = self._known(batch, filled.source) | {"past_key_values": EncoderDecoderCache(own, cross)}
        return CachedBatch(self.model, ids_BT, lambda ids: _answering(ids, known), held_bytes(own) + held_bytes(cross))

    def _seen(self, ids_BT: torch.Tensor) -> EncoderDecoderCache:
        """Return caches of the model's layers that have seen one token of each kind."""
        seen = EncoderDecoderCache(DynamicCache(), DynamicCache())
        run: Any = self.model
        run(decoder_input_ids=ids_BT, **self._known(1, 1), past_key_values=seen, use_cache=True)
        return seen

    def _known(self, batch: int, tokens: int) -> Inputs:
        """Return what stands for a source that was read: nobody looks at its states once they are in the cache."""
        encoder: Any = self.model.get_encoder()
        width = encoder.config.get_text_config(encoder=True).hidden_size
        states_BSD = torch.zeros(1, 1, width, dtype=self.model.dtype, device=self.model.device)
        mask_BS = torch.ones(batch, tokens, dtype=torch.int64, device=self.model.device)
        output = BaseModelOutput(last_hidden_state=states_BSD.expand(batch, tokens, width))
        return {"encoder_outputs": output, "attention_mask": mask_BS}


class CachedBatch:
    """Sequences of which all tokens but the last are in the cache."""

    def __init__(
        self, model: PreTrainedModel, ids_BT: torch.Tensor, inputs: Callable[[torch.Tensor], Inputs], cache_bytes: int
    ) -> None:
        """Begin with the tokens `ids_BT`; `inputs` returns what `generate` needs to go on from some."""
        self._model, self._ids_BT, self._inputs = model, ids_BT, inputs
        self.cache_bytes = cache_bytes

    def turn(self, tokens: int, **more: Any) -> list[float]:
        """Decode one token that is not counted (`generate` sets itself up), and return the seconds of `tokens` more."""
        self._ids_BT, times = generate(self._model, tokens + 1, self._inputs(self._ids_BT) | more)
        return [after - before for before, after in pairwise(times)]


def going_on(ids_BT: torch.Tensor, **more: Any) -> Inputs:
    """Return what a decoder goes on from: these tokens, all of them, and `more`."""
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), **more}


class WatchedCache(DynamicCache):
    """A dynamic cache that notes the most bytes it has occupied, after each layer of each forward.

    Counted are whole storages: a layer with a window keeps W - 1 entries as a view of all that it was last given.
    """

    peak = 0

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values as the cache does, and note what there is."""
        added: tuple[torch.Tensor, torch.Tensor] = super().update(*args, **kwargs)
        states = [getattr(layer, name, None) for layer in self.layers for name in ("keys", "values")]
        stores = [state.untyped_storage() for state in states if isinstance(state, torch.Tensor)]
        self.peak = max(self.peak, sum({one.data_ptr(): one.nbytes() for one in stores}.values()))
        return added


def generate(
    model: PreTrainedModel, tokens: int, inputs: Inputs, chunk: int | None = None
) -> tuple[torch.Tensor, list[float]]:
    """Write `tokens` tokens greedily, behind a prompt that is read at once, or `chunk` tokens at a time.

    Returns:
        All tokens, and the time at which each new one was there.
    """
    clock = Clock(model.device)
    run: Any = model.generate
    pieces = {} if chunk is None else {"prefill_chunk_size": chunk}
    written_BT: torch.Tensor = run(**inputs, max_new_tokens=tokens, stopping_criteria=[clock], **pieces)
    return written_BT, clock.times


def _answering(ids_BT: torch.Tensor, known: Inputs) -> Inputs:
    """Return what a decoder behind an encoder goes on from: these tokens, and what is known of the source."""
    return {"decoder_input_ids": ids_BT, "decoder_attention_mask": torch.ones_like(ids_BT), **known}


def empty_cache(model: Any, kind: str, length: int) -> Cache:
    """Return an empty cache of a decoder's self-attention, `dynamic`, or `static` for `length` tokens."""
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    config = decoder.config.get_text_config(decoder=True)
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=length)


def _cross_cache(layers: int, kind: str, length: int) -> Cache:
    """Return an empty cache of cross-attention, whose layers see the whole source, whatever window the decoder has."""
    return DynamicCache() if kind == "dynamic" else Cache(layers=[StaticLayer(length) for _ in range(layers)])


def fill(cache: Cache, batch: int, tokens: int, like: Cache) -> None:
    """Add `tokens` random keys and values to a cache, as wide as those that each attention layer of `like` has seen."""
    for index, layer in enumerate(like.layers):
        seen = (layer.keys, layer.values) if tokens > 0 and isinstance(layer, CacheLayerMixin) else ()
        filled = [_random_like(one, batch, tokens) for one in seen if isinstance(one, torch.Tensor)]
        if filled:
            cache.update(filled[0], filled[1], index)


def _random_like(states: torch.Tensor, batch: int, tokens: int) -> torch.Tensor:
    """Return `[B, G, tokens, E]` random numbers, the same for every sequence: drawing them takes longer than a step."""
    one = torch.randn(1, states.shape[1], tokens, states.shape[3], dtype=states.dtype, device=states.device)
    return one.expand(batch, -1, -1, -1)
