"""GPT-2 with fewer key/value heads than query heads: grouped-query or multi-query attention.

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
It is transformers' own GPT-2 but for self-attention: `c_attn` computes `num_key_value_heads` keys and values, the
cache holds as many, and each is read by `num_attention_heads / num_key_value_heads` neighbouring query heads.
`c_attn` and `c_proj` of attention are `nn.Linear` (rows are outputs); the MLP keeps its `Conv1D`. Cross-attention,
where a model has it, is untouched.

    E width of a head · G key/value heads · D model width
"""

from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"The code of this checkpoint needs transformers 5, and this is {transformers.__version__}")

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block


class GPT2GQAConfig(transformers.GPT2Config):
    """GPT-2's config with a number of key/value heads; None is one for each query head."""

    model_type = "gpt2_gqa"
    num_key_value_heads: int | None = None


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """GPT-2's own eager attention over repeated keys and values."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    return modeling_gpt2.eager_attention_forward(module, query, key, value, mask, **kwargs)


class GPT2GQAAttention(GPT2Attention):
    """Self-attention whose key and value rows of `c_attn` are `[G·E, D]` each."""

    def __init__(self, config: GPT2GQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        heads = config.num_key_value_heads or self.num_heads
        self.num_key_value_groups = self.num_heads // heads
        self.widths = [self.embed_dim, heads * self.head_dim, heads * self.head_dim]
        self.c_attn = nn.Linear(self.embed_dim, sum(self.widths))
        self.c_proj = nn.Linear(self.embed_dim, self.embed_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as GPT-2 does; what concerns an encoder is not read here."""
        parts = self.c_attn(hidden_states).split(self.widths, dim=2)
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if past_key_values is not None:
            cache = getattr(past_key_values, "self_attention_cache", past_key_values)
            key, value = cache.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        if implementation == "eager" and self.reorder_and_upcast_attn:
            key, value = repeat_kv(key, self.num_key_value_groups), repeat_kv(value, self.num_key_value_groups)
            output, weights = self._upcast_and_reordered_attn(query, key, value, attention_mask)
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
            dropout = self.attn_dropout.p if self.training else 0.0
            output, weights = attend(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        return self.resid_dropout(self.c_proj(output.reshape(*hidden_states.shape[:-1], -1))), weights


class GroupedModel:
    """Gives every block of a GPT-2 model attention with `config.num_key_value_heads` heads."""

    config_class = GPT2GQAConfig

    def __init__(self, config: GPT2GQAConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in list(self.modules()):
            if isinstance(module, GPT2Block):
                module.attn = GPT2GQAAttention(config, module.attn.layer_idx)
        self.post_init()
        # GPT-2's own patterns fit the bias of `c_attn` as well, which vLLM would then leave out.
        self._keys_to_ignore_on_load_unexpected = {r"\.attn\.(masked_)?bias$", r"\.crossattention\.(masked_)?bias$"}


for head in ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"):
    native = getattr(transformers, f"GPT2{head}")
    globals()[f"GPT2GQA{head}"] = type(f"GPT2GQA{head}", (GroupedModel, native), {"__module__": __name__})
