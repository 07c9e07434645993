"""MPT with fewer key/value heads than query heads: grouped-query or multi-query attention.

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
It is transformers' own MPT but for attention: `Wqkv` is `[q; k; v]` with `num_key_value_heads` keys and values, the
cache holds as many, and they are repeated where they are read.

    E width of a head · G key/value heads · H query heads · D model width
"""

from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"The code of this checkpoint needs transformers 5, and this is {transformers.__version__}")

import torch
from torch import nn
from transformers import (
    MptConfig,
    MptForCausalLM,
    MptForQuestionAnswering,
    MptForSequenceClassification,
    MptForTokenClassification,
    MptModel,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.models.mpt.modeling_mpt import MptAttention, MptBlock


class MptGQAConfig(MptConfig):
    """MPT's config with a number of key/value heads; None is one for each query head."""

    model_type = "mpt_gqa"
    num_key_value_heads: int | None = None


class MptGQAAttention(MptAttention):
    """Attention with `Wqkv` of `[(H + 2G)·E, D]`."""

    def __init__(self, config: MptGQAConfig, layer_idx: int | None) -> None:
        super().__init__(config, layer_idx)
        heads = config.num_key_value_heads or self.n_heads
        self.num_key_value_groups = self.n_heads // heads
        self.widths = [self.hidden_size, heads * self.head_dim, heads * self.head_dim]
        self.Wqkv = nn.Linear(self.hidden_size, sum(self.widths), bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend as MPT does, over repeated keys and values."""
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        parts = mixed.split(self.widths, dim=2)
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        key, value = repeat_kv(key, self.num_key_value_groups), repeat_kv(value, self.num_key_value_groups)
        scores = query @ key.transpose(-1, -2) * self.softmax_scale
        if position_bias is not None:
            scores = scores + position_bias[:, :, -key.shape[2] :]  # one row, that of the newest token: ALiBi
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask, torch.finfo(query.dtype).min)
        weights = nn.functional.softmax(scores.float(), dim=-1).to(value.dtype)
        weights = nn.functional.dropout(weights, p=self.attn_dropout_p, training=self.training)
        return self.out_proj((weights @ value).transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)), weights


class GroupedModel:
    """Gives every block of an MPT model attention with `config.num_key_value_heads` heads."""

    config_class = MptGQAConfig

    def __init__(self, config: MptGQAConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in list(self.modules()):
            if isinstance(module, MptBlock):
                module.attn = MptGQAAttention(config, module.attn.layer_idx)
        self.post_init()


class MptGQAModel(GroupedModel, MptModel):
    """`MptModel`."""


class MptGQAForCausalLM(GroupedModel, MptForCausalLM):
    """`MptForCausalLM`."""


class MptGQAForSequenceClassification(GroupedModel, MptForSequenceClassification):
    """`MptForSequenceClassification`."""


class MptGQAForTokenClassification(GroupedModel, MptForTokenClassification):
    """`MptForTokenClassification`."""


class MptGQAForQuestionAnswering(GroupedModel, MptForQuestionAnswering):
    """`MptForQuestionAnswering`."""
