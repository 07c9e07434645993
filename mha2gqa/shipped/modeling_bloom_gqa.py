"""BLOOM with fewer key/value heads than query heads: grouped-query or multi-query attention.

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
It is transformers' own BLOOM but for attention: `query_key_value` holds each key/value head behind its own query
heads, `[G, (q * H/G, k, v), E, D]` (BLOOM's own order when G = H), the cache holds G heads, and they are repeated
where they are read.

    E width of a head · G key/value heads · H query heads · D model width
"""

from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"The code of this checkpoint needs transformers 5, and this is {transformers.__version__}")

import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    BloomForQuestionAnswering,
    BloomForSequenceClassification,
    BloomForTokenClassification,
    BloomModel,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomBlock


class BloomGQAConfig(BloomConfig):
    """BLOOM's config with a number of key/value heads; None is one for each query head."""

    model_type = "bloom_gqa"
    num_key_value_heads: int | None = None


class RepeatingCache:
    """A layer's cache of G heads, which BLOOM's attention reads as H.

    Args:
        cache: The model's cache; None where nothing is kept.
        repeats: Query heads of each key/value head.
    """

    def __init__(self, cache: Any, repeats: int) -> None:
        self.cache, self.repeats = cache, repeats

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values `[B, G, T, E]` and return all so far, `[B, H, T, E]`."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer)
        return repeat_kv(key, self.repeats), repeat_kv(value, self.repeats)


class BloomGQAAttention(BloomAttention):
    """Attention with `query_key_value` of `[(H + 2G)·E, D]`."""

    def __init__(self, config: BloomGQAConfig, layer_idx: int | None) -> None:
        super().__init__(config, layer_idx)
        self.kv_heads = config.num_key_value_heads or self.num_heads
        self.num_key_value_groups = self.num_heads // self.kv_heads
        self.query_key_value = nn.Linear(self.hidden_size, (self.num_heads + 2 * self.kv_heads) * self.head_dim)

    def _reshape(self, fused_qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grouped = fused_qkv.unflatten(2, (self.kv_heads, -1, self.head_dim))
        query, key, value = grouped.split([self.num_key_value_groups, 1, 1], dim=3)
        return tuple(part.flatten(2, 3).transpose(1, 2) for part in (query, key, value))

    def forward(self, *args: Any, layer_past: Any = None, **kwargs: Any) -> Any:
        """Attend as BLOOM does, over repeated keys and values."""
        return super().forward(*args, layer_past=RepeatingCache(layer_past, self.num_key_value_groups), **kwargs)


class GroupedModel:
    """Gives every block of a BLOOM model attention with `config.num_key_value_heads` heads."""

    config_class = BloomGQAConfig

    def __init__(self, config: BloomGQAConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in list(self.modules()):
            if isinstance(module, BloomBlock):
                module.self_attention = BloomGQAAttention(config, module.self_attention.layer_idx)
        self.post_init()


class BloomGQAModel(GroupedModel, BloomModel):
    """`BloomModel`."""


class BloomGQAForCausalLM(GroupedModel, BloomForCausalLM):
    """`BloomForCausalLM`."""


class BloomGQAForSequenceClassification(GroupedModel, BloomForSequenceClassification):
    """`BloomForSequenceClassification`."""


class BloomGQAForTokenClassification(GroupedModel, BloomForTokenClassification):
    """`BloomForTokenClassification`."""


class BloomGQAForQuestionAnswering(GroupedModel, BloomForQuestionAnswering):
    """`BloomForQuestionAnswering`."""
