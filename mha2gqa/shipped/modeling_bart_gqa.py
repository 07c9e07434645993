"""BART and its like with fewer key/value heads than query heads (GQA, MQA).

BART, mBART, Blenderbot, Marian, Pegasus, PLBart, M2M100 (NLLB), Whisper and Speech2Text: one and the same
attention. This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5
alone. The models are transformers' own but for attention: `k_proj` and `v_proj` compute G heads, the caches of self-
and cross-attention hold as many, and each is read by H/G neighbouring query heads. Each kind of attention has a number
of its own in the config: `decoder_key_value_heads` (self-attention of the decoder), `cross_key_value_heads` and
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
from transformers.models.bart import modeling_bart
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.blenderbot.modeling_blenderbot import BlenderbotAttention
from transformers.models.blenderbot_small.modeling_blenderbot_small import BlenderbotSmallAttention
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Attention
from transformers.models.marian.modeling_marian import MarianAttention
from transformers.models.mbart.modeling_mbart import MBartAttention
from transformers.models.pegasus.modeling_pegasus import PegasusAttention
from transformers.models.plbart.modeling_plbart import PLBartAttention
from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextAttention
from transformers.models.whisper.modeling_whisper import WhisperAttention

NATIVE = {
    transformers.BartConfig: BartAttention,
    transformers.BlenderbotConfig: BlenderbotAttention,
    transformers.BlenderbotSmallConfig: BlenderbotSmallAttention,
    transformers.M2M100Config: M2M100Attention,
    transformers.MarianConfig: MarianAttention,
    transformers.MBartConfig: MBartAttention,
    transformers.PegasusConfig: PegasusAttention,
    transformers.PLBartConfig: PLBartAttention,
    transformers.Speech2TextConfig: Speech2TextAttention,
    transformers.WhisperConfig: WhisperAttention,
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
    """BART's own eager attention over repeated keys and values."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    return modeling_bart.eager_attention_forward(module, query, key, value, mask, **kwargs)


class GroupedAttention(nn.Module):
    """Attention with `k_proj` and `v_proj` of `[G·E, D]`."""

    def narrow(self, heads: int | None) -> None:
        """Give an attention as its own class has built it `heads` key/value heads; None keeps one per query head."""
        heads = heads or self.num_heads
        self.num_key_value_groups = self.num_heads // heads
        for name in ("k_proj", "v_proj"):
            has_bias = getattr(self, name).bias is not None  # Whisper's keys have none
            setattr(self, name, nn.Linear(self.embed_dim, heads * self.head_dim, bias=has_bias))

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to the sequence itself, or to `key_value_states` of an encoder."""
        # Whisper scales before the product; the others after it, which is the same but for rounding.
        query = self.heads(self.q_proj(hidden_states) * self.scaling)
        key, value = self.keys_and_values(hidden_states, key_value_states, past_key_values)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=1.0, **kwargs)
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    def heads(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows `[B, T, heads·E]` as `[B, heads, T, E]`."""
        return rows.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

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
        key, value = self.heads(self.k_proj(source)), self.heads(self.v_proj(source))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if both and read is not None:
                past.is_updated[self.layer_idx] = True
        return key, value


GROUPED = {native: type(native.__name__, (GroupedAttention, native), {}) for native in NATIVE.values()}
"""Attention of transformers -> the same with grouped heads."""


class GroupedModel:
    """Turns the attention of a model into its grouped form, each kind with its own number of heads."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for name, module in list(self.named_modules()):
            if type(module) in GROUPED:
                kind = "cross" if name.endswith("encoder_attn") else "decoder" if module.is_decoder else "encoder"
                module.__class__ = GROUPED[type(module)]  # keeps what the module's own constructor has set
                module.narrow(getattr(config, f"{kind}_key_value_heads"))
        self.post_init()


def with_key_value_heads(native: type) -> type:
    """Return a config class of transformers with numbers of key/value heads; None leaves a kind as it is."""
    body = {"__module__": __name__, "__annotations__": dict.fromkeys(COUNTS, int | None), **dict.fromkeys(COUNTS)}
    name = native.__name__.replace("Config", "GQAConfig")
    return type(name, (native,), body | {"model_type": f"{native.model_type}_gqa"})


def with_grouped_heads(native: type, config_class: type) -> type:
    """Return a model class of transformers with grouped attention: `BartGQAModel` of `BartModel`."""
    family = config_class.__name__.removesuffix("GQAConfig")
    name = native.__name__.replace(family, f"{family}GQA")
    return type(name, (GroupedModel, native), {"__module__": __name__, "config_class": config_class})


HEADS = (
    *("Model", "MTModel", "ForConditionalGeneration", "ForCausalLM"),
    *("ForSequenceClassification", "ForQuestionAnswering", "ForAudioClassification"),
)
for native_config in NATIVE:
    config_class = with_key_value_heads(native_config)
    globals()[config_class.__name__] = config_class
    for head in HEADS:
        native = getattr(transformers, native_config.__name__.removesuffix("Config") + head, None)
        if native is not None:
            model_class = with_grouped_heads(native, config_class)
            globals()[model_class.__name__] = model_class
