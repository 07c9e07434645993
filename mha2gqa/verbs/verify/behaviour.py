"""What a model does when it is run: forward, cache, generation, prefill in pieces. One model, no judgement.

A class may be unable to do something that others can (no cache, no generation, no prefill in pieces);
then the reason stands in the place of the number. `load_level.py` compares the two models.

Legend: B blocks, T tokens of a block.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from mha2gqa.model.feed import attempt, inputs
from mha2gqa.model.kind import kind_of

NEW_TOKENS = 16
"""Tokens that are generated."""

Observed: TypeAlias = float | str | None
"""A number, why there is none, or None where the class does not do this at all."""


@dataclass(frozen=True)
class Behaviour:
    """What one model did."""

    forward: Observed
    """Largest logit (without a head: number of the last hidden state) in absolute value; every one was finite."""
    cache: Observed
    """Bytes of KV cache that a token added to one sequence."""
    cross_cache: Observed
    """Bytes that a token of the encoder added to the cache of cross-attention; None without an encoder."""
    generation: Observed
    """How much less likely than the best a token was that generation with the cache chose, by a forward without
    the cache: largest difference of two logits, as a fraction of the largest logit."""
    prefill: Observed
    """Largest difference of the logits of the second half read after the first from those of the whole, as a
    fraction of the largest logit."""


@torch.inference_mode()
def observe(model: PreTrainedModel, ids_BT: torch.Tensor, cached: int) -> Behaviour:
    """Run a model.

    Args:
        model: The model.
        ids_BT: What it reads.
        cached: Tokens at which the cache is measured; no sliding window may be full by then.
    """
    kind = kind_of(model)
    forward = attempt(lambda: _forward(model, ids_BT))
    if isinstance(forward, str) or not kind.decodes:
        return Behaviour(forward, None, None, None, None)
    return Behaviour(
        forward=forward,
        cache=attempt(lambda: _cache(model, ids_BT, cached)),
        cross_cache=attempt(lambda: _cross_cache(model, ids_BT)) if kind.has_encoder else None,
        generation=attempt(lambda: _generation(model, ids_BT)) if kind.generates else None,
        prefill=attempt(lambda: _prefill(model, ids_BT)),
    )


def _run(model: PreTrainedModel, ids_BT: torch.Tensor, encoder_ids_BT: torch.Tensor, **options: Any) -> Any:
    return model(**inputs(model, ids_BT, encoder_ids_BT) | options)


def _forward(model: PreTrainedModel, ids_BT: torch.Tensor) -> float:
    output = _run(model, ids_BT, ids_BT)
    if kind_of(model).gives_embeddings:
        states_BTD = output.last_hidden_state
        if not torch.isfinite(states_BTD).all():
            raise ValueError("the last hidden state holds NaN or infinity")
        return _scale(states_BTD)
    logits_BTV = output.logits
    if not torch.isfinite(logits_BTV).any(dim=-1).all() or logits_BTV.isnan().any():
        raise ValueError("the logits hold NaN or infinity")
    return _scale(logits_BTV)


def _scale(logits_BTV: torch.Tensor) -> float:
    """Return the largest logit in absolute value; a class may mask a part of the vocabulary with -infinity."""
    return float(logits_BTV[torch.isfinite(logits_BTV)].abs().max())


def _cache(model: PreTrainedModel, ids_BT: torch.Tensor, cached: int) -> float | None:
    if cached < 2:
        return None
    short, long = (_filled(model, ids_BT[:, :length], ids_BT) for length in (cached // 2, cached))
    if short is None or long is None:
        return None
    return (held_bytes(long) - held_bytes(short)) / (cached - cached // 2) / len(ids_BT)


def _filled(model: PreTrainedModel, ids_BT: torch.Tensor, encoder_ids_BT: torch.Tensor) -> Cache | None:
    """Return the cache after reading `ids_BT`; None where the class gives none."""
    output = _run(model, ids_BT, encoder_ids_BT, use_cache=True)
    cache: Cache | None = getattr(output, "past_key_values", None)
    return cache


def _cross_cache(model: PreTrainedModel, ids_BT: torch.Tensor) -> float | None:
    """Return what one more token of the encoder takes, by two inputs of different length."""
    half, whole = ids_BT.shape[1] // 2, ids_BT.shape[1]
    caches = [_filled(model, ids_BT, ids_BT[:, :length]) for length in (half, whole)]
    read = [held_bytes(one.cross_attention_cache) for one in caches if isinstance(one, EncoderDecoderCache)]
    return (read[1] - read[0]) / (whole - half) / len(ids_BT) if len(read) == 2 else None


def held_bytes(cache: Cache) -> int:
    """Return the bytes of the keys and values that a cache holds; of an encoder-decoder's the decoder's own."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    names = ("keys", "values", "prefill_keys", "prefill_values")
    states = [getattr(layer, name, None) for layer in own.layers for name in names]
    return sum(state.nbytes for state in states if isinstance(state, torch.Tensor) and state.dim() == 4)


def _generation(model: PreTrainedModel, ids_BT: torch.Tensor) -> float:
    generate: Any = model.generate
    read_BT = ids_BT.to(model.device)
    seen_BT = torch.ones_like(read_BT)  # else a token that happens to be the padding would be left out
    written_BT: torch.Tensor = generate(input_ids=read_BT, attention_mask=seen_BT, max_new_tokens=NEW_TOKENS)
    logits_BTV = _run(model, written_BT, ids_BT).logits
    chosen_BT = written_BT[:, -NEW_TOKENS:]
    choices_BTV = logits_BTV[:, -NEW_TOKENS - 1 : -1]
    taken_BT = choices_BTV.gather(-1, chosen_BT[..., None])[..., 0]
    return float((choices_BTV.amax(dim=-1) - taken_BT).max()) / max(_scale(choices_BTV), 1e-30)


def _prefill(model: PreTrainedModel, ids_BT: torch.Tensor) -> float:
    half = ids_BT.shape[1] // 2
    whole_BTV = _run(model, ids_BT, ids_BT).logits[:, half:]
    first = _run(model, ids_BT[:, :half], ids_BT, use_cache=True)
    rest_BTV = _run(model, ids_BT[:, half:], ids_BT, use_cache=True, past_key_values=first.past_key_values).logits
    return float((rest_BTV - whole_BTV).nan_to_num(nan=0.0).abs().max()) / max(_scale(whole_BTV), 1e-30)
