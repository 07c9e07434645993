"""Runs an encoder-decoder by transformers' own `generate`, with a cache for each kind of attention.

When decoding begins, the cache of cross-attention holds the tokens of a source, and the decoder's own those of a
target; both are filled with random keys and values, and no encoder runs. `generate` is given the caches also where a
source is read: that of transformers 5.23 makes them of as many layers as a T5's encoder has.

Legend: B sequences, T tokens of a target, S tokens of a source, D width of the encoder's output.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import BaseModelOutput

from mha2gqa.verbs.bench.engine import Filled
from mha2gqa.verbs.bench.transformers_engine import CachedBatch, Inputs, TransformersEngine, random_states
from mha2gqa.verbs.verify.behaviour import held_bytes


class EncoderDecoderEngine(TransformersEngine):
    """An encoder-decoder that transformers runs."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__(model, seed)
        settings: Any = model.generation_config
        if settings.decoder_start_token_id is None:  # random weights have none
            settings.decoder_start_token_id = settings.bos_token_id or 0

    def prompts(self, batch: int, tokens: int) -> Inputs:
        """Return a batch of sources that were not read yet."""
        ids_BS = self._random_sources(batch, tokens)
        cache = EncoderDecoderCache(own_cache(self.model, "dynamic", 0), DynamicCache())
        return {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS), "past_key_values": cache}

    @torch.no_grad()
    def start(self, batch: int, filled: Filled, kind: str, room: int) -> CachedBatch:
        """Return a batch with as many tokens in its caches, and room for `room` more of the target."""
        ids_BT = self._random_ids(batch, filled.own + 1)
        ids_BT[:, 0] = self.model.generation_config.decoder_start_token_id  # `generate` puts it before what has none
        seen = self._seen(ids_BT[:1, :1])
        own = own_cache(self.model, kind, filled.own + room)
        cross = cross_cache(len(seen.cross_attention_cache.layers), kind, filled.source)
        for made, like, tokens in (
            (own, seen.self_attention_cache, filled.own),
            (cross, seen.cross_attention_cache, filled.source),
        ):
            for index, layer in enumerate(like.layers):
                made.update(*random_states(layer, batch, tokens), index)
        known = self._known(batch, filled.source) | {"past_key_values": EncoderDecoderCache(own, cross)}
        return CachedBatch(self.model, ids_BT, lambda ids: going_on(ids, known), held_bytes(own) + held_bytes(cross))

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

    def _random_sources(self, batch: int, tokens: int) -> torch.Tensor:
        encoder: Any = self.model.get_encoder()
        size = encoder.get_input_embeddings().num_embeddings
        return torch.randint(size, (batch, tokens), generator=self._generator).to(self.model.device)


def going_on(ids_BT: torch.Tensor, known: Inputs) -> Inputs:
    """Return what a decoder goes on from: these tokens, all of them, and what is known of the source."""
    return {"decoder_input_ids": ids_BT, "decoder_attention_mask": torch.ones_like(ids_BT), **known}


def own_cache(model: Any, kind: str, length: int) -> Cache:
    """Return an empty cache of a decoder's self-attention, `dynamic`, or `static` for `length` tokens."""
    config = model.get_decoder().config.get_text_config(decoder=True)
    return DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=length)


def cross_cache(layers: int, kind: str, length: int) -> Cache:
    """Return an empty cache of cross-attention, whose layers see the whole source, whatever window the decoder has."""
    return DynamicCache() if kind == "dynamic" else Cache(layers=[StaticLayer(length) for _ in range(layers)])
