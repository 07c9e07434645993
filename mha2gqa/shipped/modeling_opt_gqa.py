"""OPT with fewer key/value heads than query heads: grouped-query or multi-query attention.

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
It is transformers' own OPT but for attention: `k_proj` and `v_proj` compute `num_key_value_heads` heads, the cache
holds as many, and each is read by `num_attention_heads / num_key_value_heads` neighbouring query heads.

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
from transformers.models.opt import modeling_opt
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoderLayer


class OPTGQAConfig(transformers.OPTConfig):
    """OPT's config with a number of key/value heads; None is one for each query head."""

    model_type = "opt_gqa"
    num_key_value_heads: int | None = None


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """OPT's own eager attention over repeated keys and values."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    return modeling_opt.eager_attention_forward(module, query, key, value, mask, **kwargs)


class OPTGQAAttention(OPTAttention):
    """Attention with `k_proj` and `v_proj` of `[G·E, D]`."""

    def __init__(self, config: OPTGQAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx=layer_idx)
        heads = config.num_key_value_heads or self.num_heads
        self.num_key_value_groups = self.num_heads // heads
        self.k_proj = nn.Linear(self.embed_dim, heads * self.head_dim, bias=self.enable_bias)
        self.v_proj = nn.Linear(self.embed_dim, heads * self.head_dim, bias=self.enable_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as OPT does, which scales the queries before the product."""
        parts = (self.q_proj(hidden_states) * self.scaling, self.k_proj(hidden_states), self.v_proj(hidden_states))
        query, key, value = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=1.0, **kwargs)
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class GroupedModel:
    """Gives every layer of an OPT model attention with `config.num_key_value_heads` heads."""

    config_class = OPTGQAConfig

    def __init__(self, config: OPTGQAConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in list(self.modules()):
            if isinstance(module, OPTDecoderLayer):
                module.self_attn = OPTGQAAttention(config, module.self_attn.layer_idx)
        self.post_init()


for head in ("Model", "ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering"):
    native = getattr(transformers, f"OPT{head}")
    globals()[f"OPTGQA{head}"] = type(f"OPTGQA{head}", (GroupedModel, native), {"__module__": __name__})
