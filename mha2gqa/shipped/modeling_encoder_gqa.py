"""Encoders without a cache and with fewer key/value heads than query heads (GQA, MQA).

DeBERTa, DeiT, DINOv2, DistilBERT, HuBERT, ViT and wav2vec 2.0. This file lies beside a checkpoint and is loaded with
`trust_remote_code=True`; it needs transformers 5 alone. The models are transformers' own but for the projections of
keys and values, which compute `num_key_value_heads` heads and hand each to `num_attention_heads / num_key_value_heads`
neighbouring query heads. There is no cache that would have to stay small, so nothing else of the attention changes.

    E width of a head · G key/value heads · H query heads · R = H/G · D model width
"""

from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"The code of this checkpoint needs transformers 5, and this is {transformers.__version__}")

import torch
from torch import nn
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention as DisentangledSelfAttentionV2
from transformers.models.deit.modeling_deit import DeiTAttention
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention
from transformers.models.distilbert.modeling_distilbert import DistilBertSelfAttention
from transformers.models.hubert.modeling_hubert import HubertAttention
from transformers.models.vit.modeling_vit import ViTAttention
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Attention


class RepeatedLinear(nn.Linear):
    """A projection of G heads, `[G·E, D]`, that gives each R times: `[..., D] -> [..., H·E]`.

    Args:
        width: D.
        heads: G.
        head_width: E.
        repeats: R.
        bias: Whether it has one.
    """

    def __init__(self, width: int, heads: int, head_width: int, repeats: int, bias: bool) -> None:
        super().__init__(width, heads * head_width, bias=bias)
        self.head_width, self.repeats = head_width, repeats

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project and repeat."""
        heads = super().forward(hidden_states).unflatten(-1, (-1, self.head_width))
        return heads.repeat_interleave(self.repeats, dim=-2).flatten(-2)


class RepeatedFused(nn.Linear):
    """DeBERTa's projection of all three, each key/value head behind its queries: `[G, (q * R, k, v), E, D]`.

    Args:
        width: D.
        heads: G.
        head_width: E.
        repeats: R.
    """

    def __init__(self, width: int, heads: int, head_width: int, repeats: int) -> None:
        super().__init__(width, heads * (repeats + 2) * head_width, bias=False)
        self.heads, self.head_width, self.repeats = heads, head_width, repeats

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `[..., H, (q, k, v), E]` as DeBERTa reads it, flat."""
        grouped = super().forward(hidden_states).unflatten(-1, (self.heads, -1, self.head_width))
        query, key, value = grouped.split([self.repeats, 1, 1], dim=-2)
        return torch.stack([query, key.expand_as(query), value.expand_as(query)], dim=-2).flatten(-4)


PROJECTIONS = ("k_proj", "v_proj")
NAMES = {
    DistilBertSelfAttention: ("k_lin", "v_lin"),
    DisentangledSelfAttentionV2: ("key_proj", "value_proj"),
    **dict.fromkeys((DeiTAttention, Dinov2Attention, HubertAttention, ViTAttention, Wav2Vec2Attention), PROJECTIONS),
}
"""Attention of transformers -> its projections of keys and values."""


def narrow(attention: nn.Module, config: Any) -> None:
    """Give an attention the key/value heads that the config counts."""
    queries = config.num_attention_heads
    heads = config.num_key_value_heads or queries
    for name in NAMES.get(type(attention), ()):
        old = getattr(attention, name)
        head_width = old.out_features // queries
        projection = RepeatedLinear(old.in_features, heads, head_width, queries // heads, old.bias is not None)
        setattr(attention, name, projection)
    if type(attention) is DisentangledSelfAttention:
        width, head_width = attention.in_proj.in_features, attention.attention_head_size
        attention.in_proj = RepeatedFused(width, heads, head_width, queries // heads)


class GroupedModel:
    """Gives every self-attention of a model `config.num_key_value_heads` heads."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in list(self.modules()):
            narrow(module, config)
        self.post_init()


def with_key_value_heads(native: type) -> type:
    """Return a config class of transformers with a number of key/value heads; None is one for each query head."""
    body = {"__module__": __name__, "__annotations__": {"num_key_value_heads": int | None}, "num_key_value_heads": None}
    name = native.__name__.replace("Config", "GQAConfig")
    return type(name, (native,), body | {"model_type": f"{native.model_type}_gqa"})


def with_grouped_heads(native: type, config_class: type) -> type:
    """Return a model class of transformers with grouped attention: `ViTGQAModel` of `ViTModel`."""
    family = config_class.__name__.removesuffix("GQAConfig")
    name = native.__name__.replace(family, f"{family}GQA")
    return type(name, (GroupedModel, native), {"__module__": __name__, "config_class": config_class})


CONFIGS = (
    *(transformers.DebertaConfig, transformers.DebertaV2Config, transformers.DistilBertConfig),
    *(transformers.DeiTConfig, transformers.Dinov2Config, transformers.ViTConfig),
    *(transformers.HubertConfig, transformers.Wav2Vec2Config),
)
HEADS = (
    *("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"),
    *("ForQuestionAnswering", "ForImageClassification", "ForMaskedImageModeling", "ForPreTraining", "ForCTC"),
    *("ForAudioFrameClassification", "ForXVector"),
)
for native_config in CONFIGS:
    config_class = with_key_value_heads(native_config)
    globals()[config_class.__name__] = config_class
    for head in HEADS:
        native = getattr(transformers, native_config.__name__.removesuffix("Config") + head, None)
        if native is not None:
            model_class = with_grouped_heads(native, config_class)
            globals()[model_class.__name__] = model_class
