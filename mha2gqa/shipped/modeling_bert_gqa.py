"""BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA with fewer key/value heads than query heads (GQA, MQA).

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
The models are transformers' own but for self-attention: `key` and `value` compute `num_key_value_heads` heads, each
read by `num_attention_heads / num_key_value_heads` neighbouring query heads, and a model that is used as a decoder
caches as many. Cross-attention, where a decoder has it, is untouched.

    E width of a head · G key/value heads · D model width
"""

from typing import Any

import torch
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.camembert.modeling_camembert import CamembertSelfAttention
from transformers.models.electra.modeling_electra import ElectraSelfAttention
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSelfAttention


class BertGQAConfig(transformers.BertConfig):
    """BERT's config with a number of key/value heads; None is one for each query head."""

    model_type = "bert_gqa"
    num_key_value_heads: int | None = None


class RobertaGQAConfig(transformers.RobertaConfig):
    """RoBERTa's config with a number of key/value heads; None is one for each query head."""

    model_type = "roberta_gqa"
    num_key_value_heads: int | None = None


class XLMRobertaGQAConfig(transformers.XLMRobertaConfig):
    """XLM-RoBERTa's config with a number of key/value heads; None is one for each query head."""

    model_type = "xlm-roberta_gqa"
    num_key_value_heads: int | None = None


class CamembertGQAConfig(transformers.CamembertConfig):
    """CamemBERT's config with a number of key/value heads; None is one for each query head."""

    model_type = "camembert_gqa"
    num_key_value_heads: int | None = None


class ElectraGQAConfig(transformers.ElectraConfig):
    """ELECTRA's config with a number of key/value heads; None is one for each query head."""

    model_type = "electra_gqa"
    num_key_value_heads: int | None = None


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """BERT's own eager attention over repeated keys and values."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    return modeling_bert.eager_attention_forward(module, query, key, value, mask, **kwargs)


class GroupedSelfAttention(nn.Module):
    """Self-attention with `key` and `value` of `[G·E, D]`."""

    def narrow(self) -> None:
        """Give an attention as its own class has built it the key/value heads that its config counts."""
        heads = self.config.num_key_value_heads or self.num_attention_heads
        self.num_key_value_groups = self.num_attention_heads // heads
        self.key = nn.Linear(self.query.in_features, heads * self.attention_head_size)
        self.value = nn.Linear(self.query.in_features, heads * self.attention_head_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as BERT does, in both directions or as a decoder with a cache."""
        parts = (self.query(hidden_states), self.key(hidden_states), self.value(hidden_states))
        query, key, value = (part.unflatten(2, (-1, self.attention_head_size)).transpose(1, 2) for part in parts)
        if past_key_values is not None:
            cache = getattr(past_key_values, "self_attention_cache", past_key_values)
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout.p if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return output.flatten(2), weights


class BertGQASelfAttention(GroupedSelfAttention, BertSelfAttention):
    """BERT's."""


class RobertaGQASelfAttention(GroupedSelfAttention, RobertaSelfAttention):
    """RoBERTa's."""


class XLMRobertaGQASelfAttention(GroupedSelfAttention, XLMRobertaSelfAttention):
    """XLM-RoBERTa's."""


class CamembertGQASelfAttention(GroupedSelfAttention, CamembertSelfAttention):
    """CamemBERT's."""


class ElectraGQASelfAttention(GroupedSelfAttention, ElectraSelfAttention):
    """ELECTRA's."""


GROUPED = {grouped.__mro__[2]: grouped for grouped in GroupedSelfAttention.__subclasses__()}
"""Self-attention of transformers -> the same with grouped heads."""


class GroupedModel:
    """Turns every self-attention of a model into its grouped form."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in list(self.modules()):
            if type(module) in GROUPED:
                module.__class__ = GROUPED[type(module)]  # keeps what the module's own constructor has set
                module.narrow()
        self.post_init()


def with_grouped_heads(native: type, config_class: type) -> type:
    """Return a model class of transformers with grouped attention: `BertGQAForMaskedLM` of `BertForMaskedLM`."""
    family = config_class.__name__.removesuffix("GQAConfig")
    name = native.__name__.replace(family, f"{family}GQA")
    return type(name, (GroupedModel, native), {"__module__": __name__, "config_class": config_class})


HEADS = (
    *("Model", "LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction"),
    *("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering"),
)
CONFIGS = (BertGQAConfig, RobertaGQAConfig, XLMRobertaGQAConfig, CamembertGQAConfig, ElectraGQAConfig)
for config_class in CONFIGS:
    for head in HEADS:
        native = getattr(transformers, config_class.__name__.removesuffix("GQAConfig") + head, None)
        if native is not None:
            model_class = with_grouped_heads(native, config_class)
            globals()[model_class.__name__] = model_class
