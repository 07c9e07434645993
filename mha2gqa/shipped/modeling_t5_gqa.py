"""T5, mT5 and UMT5 with fewer key/value heads than query heads (GQA, MQA), as in the paper that introduced GQA.

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
The models are transformers' own but for attention: `k` and `v` compute G heads, the caches of self- and
cross-attention hold as many, and each is read by H/G neighbouring query heads. Each kind of attention has a number of
its own in the config: `decoder_key_value_heads` (self-attention of the decoder), `cross_key_value_heads` and
`encoder_key_value_heads`; one that is None leaves its kind as it is.

    E width of a head · G key/value heads · H query heads · D model width · T tokens · S tokens that are read
"""

from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"The code of this checkpoint needs transformers 5, and this is {transformers.__version__}")

import torch
from torch import nn
from transformers import EncoderDecoderCache
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5 import modeling_t5
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.umt5.modeling_umt5 import UMT5Attention

NATIVE = {
    transformers.T5Config: T5Attention,
    transformers.MT5Config: MT5Attention,
    transformers.UMT5Config: UMT5Attention,
}
"""Config of transformers -> the attention of its models."""
COUNTS = ("decoder_key_value_heads", "cross_key_value_heads", "encoder_key_value_heads")


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """T5's own eager attention over repeated keys and values."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    return modeling_t5.eager_attention_forward(module, query, key, value, mask, **kwargs)


class GroupedAttention(nn.Module):
    """Attention with `k` and `v` of `[G·E, D]`."""

    def narrow(self, heads: int | None) -> None:
        """Give an attention as its own class has built it `heads` key/value heads; None keeps one per query head."""
        heads = heads or self.n_heads
        self.num_key_value_groups = self.n_heads // heads
        self.k = nn.Linear(self.d_model, heads * self.key_value_proj_dim, bias=False)
        self.v = nn.Linear(self.d_model, heads * self.key_value_proj_dim, bias=False)

    def attend(
        self,
        hidden_states: torch.Tensor,
        read: torch.Tensor | None,
        position_bias: torch.Tensor | None,
        past_key_values: Any,
        mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return output, position bias `[1, H, T, S]` and weights; `read` is None in self-attention."""
        seen = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
        seen = seen.clone() if isinstance(seen, torch.Tensor) else seen  # a static cache counts it up in place
        query = self.heads(self.q(hidden_states))
        key, value = self.keys_and_values(hidden_states, read, past_key_values)
        if position_bias is None:
            position_bias = self.bias(query, key.shape[2], seen)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout if self.training else 0.0
        output, weights = function(
            *(self, query, key, value, mask),
            **{"dropout": dropout, "scaling": self.scaling, "position_bias": position_bias, **kwargs},
        )
        return self.o(output.reshape(*hidden_states.shape[:-1], -1)), position_bias, weights

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows `[B, T, heads·E]` as `[B, heads, T, E]`."""
        return rows.unflatten(2, (-1, self.key_value_proj_dim)).transpose(1, 2)

    def keys_and_values(
        self, hidden_states: torch.Tensor, read: torch.Tensor | None, past: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values `[B, G, S, E]`; those of an encoder are computed once and then cached."""
        cache, both = past, isinstance(past, EncoderDecoderCache)
        if both:
            cache = past.self_attention_cache if read is None else past.cross_attention_cache
            if read is not None and past.is_updated.get(self.layer_idx):
                return cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        source = hidden_states if read is None else read
        key, value = self.heads(self.k(source)), self.heads(self.v(source))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if both and read is not None:
                past.is_updated[self.layer_idx] = True
        return key, value

    def bias(self, query: torch.Tensor, length: int, seen: Any) -> torch.Tensor:
        """Return the relative position bias `[1, H, T, S]`, zero in a module without one."""
        if self.has_relative_attention_bias:
            return self.compute_bias(query.shape[2], length, device=query.device, past_seen_tokens=seen)
        return query.new_zeros(1, self.n_heads, query.shape[2], length)


class SharedBiasAttention(GroupedAttention):
    """T5's and mT5's form: the first layer computes the position bias for all."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Attend as T5 does."""
        return self.attend(hidden_states, key_value_states, position_bias, past_key_values, mask, **kwargs)


class OwnBiasAttention(GroupedAttention):
    """UMT5's form: every layer has a position bias of its own."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as UMT5 does."""
        found = self.attend(hidden_states, encoder_hidden_states, None, past_key_values, attention_mask, **kwargs)
        return found[0], found[2]


GROUPED = {
    native: type(native.__name__, (OwnBiasAttention if native is UMT5Attention else SharedBiasAttention, native), {})
    for native in NATIVE.values()
}
"""Attention of transformers -> the same with grouped heads."""


class GroupedModel:
    """Turns the attention of a model into its grouped form, each kind with its own number of heads."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for name, module in list(self.named_modules()):
            if type(module) in GROUPED:
                kind = "cross" if name.endswith("EncDecAttention") else "decoder" if module.is_decoder else "encoder"
                module.__class__ = GROUPED[type(module)]  # keeps what the module's own constructor has set
                module.narrow(getattr(config, f"{kind}_key_value_heads"))
        self.post_init()


def with_key_value_heads(native: type) -> type:
    """Return a config class of transformers with numbers of key/value heads; None leaves a kind as it is."""
    body = {"__module__": __name__, "__annotations__": dict.fromkeys(COUNTS, int | None), **dict.fromkeys(COUNTS)}
    name = native.__name__.replace("Config", "GQAConfig")
    return type(name, (native,), body | {"model_type": f"{native.model_type}_gqa"})


def with_grouped_heads(native: type, config_class: type) -> type:
    """Return a model class of transformers with grouped attention: `T5GQAModel` of `T5Model`."""
    family = config_class.__name__.removesuffix("GQAConfig")
    name = native.__name__.replace(family, f"{family}GQA")
    return type(name, (GroupedModel, native), {"__module__": __name__, "config_class": config_class})


HEADS = (
    *("Model", "ForConditionalGeneration", "EncoderModel"),
    *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
)
for native_config in NATIVE:
    config_class = with_key_value_heads(native_config)
    globals()[config_class.__name__] = config_class
    for head in HEADS:
        native = getattr(transformers, native_config.__name__.removesuffix("Config") + head)
        model_class = with_grouped_heads(native, config_class)
        globals()[model_class.__name__] = model_class
