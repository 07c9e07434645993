"""BERT and the models that have its attention, with fewer key/value heads than query heads (GQA, MQA).

BERT, BertGeneration, CamemBERT, data2vec (text), ELECTRA, ERNIE, RoBERTa, RoBERTa-PreLayerNorm, XLM-RoBERTa and its XL.
This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone.
The models are transformers' own but for self-attention: `key` and `value` compute `num_key_value_heads` heads, each
read by `num_attention_heads / num_key_value_heads` neighbouring query heads, and a model that is used as a decoder
caches as many. Cross-attention, where a decoder has it, is untouched.

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
from transformers.models.bert import modeling_bert
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.bert_generation.modeling_bert_generation import BertGenerationSelfAttention
from transformers.models.camembert.modeling_camembert import CamembertSelfAttention
from transformers.models.data2vec.modeling_data2vec_text import Data2VecTextSelfAttention
from transformers.models.electra.modeling_electra import ElectraSelfAttention
from transformers.models.ernie.modeling_ernie import ErnieSelfAttention
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import RobertaPreLayerNormSelfAttention
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSelfAttention
from transformers.models.xlm_roberta_xl.modeling_xlm_roberta_xl import XLMRobertaXLSelfAttention

NATIVE = {
    transformers.BertConfig: BertSelfAttention,
    transformers.BertGenerationConfig: BertGenerationSelfAttention,
    transformers.CamembertConfig: CamembertSelfAttention,
    transformers.Data2VecTextConfig: Data2VecTextSelfAttention,
    transformers.ElectraConfig: ElectraSelfAttention,
    transformers.ErnieConfig: ErnieSelfAttention,
    transformers.RobertaConfig: RobertaSelfAttention,
    transformers.RobertaPreLayerNormConfig: RobertaPreLayerNormSelfAttention,
    transformers.XLMRobertaConfig: XLMRobertaSelfAttention,
    transformers.XLMRobertaXLConfig: XLMRobertaXLSelfAttention,
}
"""Config of transformers -> the self-attention of its models."""


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
        return output.reshape(*hidden_states.shape[:-1], -1), weights


GROUPED = {native: type(native.__name__, (GroupedSelfAttention, native), {}) for native in NATIVE.values()}
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


def with_key_value_heads(native: type) -> type:
    """Return a config class of transformers with a number of key/value heads; None is one for each query head."""
    body = {"__module__": __name__, "__annotations__": {"num_key_value_heads": int | None}, "num_key_value_heads": None}
    name = native.__name__.replace("Config", "GQAConfig")
    return type(name, (native,), body | {"model_type": f"{native.model_type}_gqa"})


def with_grouped_heads(native: type, config_class: type) -> type:
    """Return a model class of transformers with grouped attention: `BertGQAForMaskedLM` of `BertForMaskedLM`."""
    family = config_class.__name__.removesuffix("GQAConfig")
    name = native.__name__.replace(family, f"{family}GQA")
    return type(name, (GroupedModel, native), {"__module__": __name__, "config_class": config_class})


HEADS = (
    *("Model", "LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction"),
    *("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering"),
    *("Encoder", "Decoder"),
)
for native_config in NATIVE:
    config_class = with_key_value_heads(native_config)
    globals()[config_class.__name__] = config_class
    for head in HEADS:
        native = getattr(transformers, native_config.__name__.removesuffix("Config") + head, None)
        if native is not None:
            model_class = with_grouped_heads(native, config_class)
            globals()[model_class.__name__] = model_class
