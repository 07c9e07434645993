"""Families: how each model type keeps attention. NEW FAMILY = ONE ROW.

Most families need no row: their config has `num_key_value_heads`, and the tensors that depend on it
are plain `k_proj` and `v_proj`, which `blueprint.py` finds. A row says what is different: where the
number of KV heads stands, what further tensors mean, which G the class allows, or why the family
cannot be converted. Contract tests hold every row, and every family without one, against
transformers' own class.

A pattern is a regular expression for the whole components at the end of a tensor's name, from the
attention module down. No code of a family lives here, and no name of a model decides anything: only
`model_type`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mha2gqa.families.layouts import Layout, fused, interleaved, separate

PLAIN = r"(k_proj|v_proj)(\.linear)?\.(weight|bias)"
"""Tensors `[K·E, ...]` that mean the same in every family."""

AllowedGroups: TypeAlias = Literal["divisors", "even", "ends"]
"""Divisors of K; even ones (heads are used in pairs); or only K and 1 (the config has but a switch)."""


@dataclass(frozen=True)
class TensorRule:
    """What a tensor is that depends on the number of KV heads."""

    source: Layout = separate
    """Order of its rows in a model with several KV heads."""
    multi_query: Layout | None = None
    """Order of its rows with one KV head, where it is another."""
    head_width: str = ""
    """Config key of one head's width, where layers differ in their number of KV heads."""
    fold: bool = False
    """Its columns, too, run over KV heads, and are summed where heads become one."""
    cached: bool = True
    """Its rows project the keys or values that the cache holds."""
    stacked: bool = False
    """One tensor per KV head; the pattern's group `head` is the head's number."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: what is special about a model type."""

    counts: tuple[str, ...] = ("num_key_value_heads",)
    """Keys of the decoder's config that hold a number of KV heads; dots lead into nested objects."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Count -> the kind of attention that it counts (`decoder`, `cross`, `encoder`), where each has its own."""
    encoder: bool = False
    """It reads all tokens at once and caches nothing, unless its config says `is_decoder`."""
    switch: bool = False
    """The count is a switch: true means one KV head, false means one per query head."""
    decoders: tuple[str, ...] = ()
    """Paths from the root config to the configs that own the counts; empty asks transformers."""
    tensors: Mapping[str, TensorRule] = field(default_factory=dict)
    """Pattern of a tensor's name -> rule, besides `PLAIN`."""
    groups: AllowedGroups = "divisors"
    """Which G the class can run."""
    widest: int = 1
    """KV heads that the layer with the most has for each one that the config counts."""
    latent: bool = False
    """Multi-head latent attention: the cache holds a latent vector, not heads."""
    refusal: str = ""
    """Why the family cannot be converted; empty when it can."""
    refused_switches: Mapping[str, str] = field(default_factory=dict)
    """Config key -> why a model that sets it cannot be converted."""


def _rows(row: Family, model_types: str) -> dict[str, Family]:
    return dict.fromkeys(model_types.split(), row)


_MLA = (
    "its multi-head latent attention (MLA) caches one latent vector per token for all heads, whose size does not "
    "depend on num_key_value_heads"
)
_SWITCH_TENSOR = TensorRule(source=interleaved, multi_query=fused)
_PARTS = {f"{part}_key_value_heads": part for part in ("decoder", "cross", "encoder")}

TABLE: Mapping[str, Family] = {
    # Full-width key norm: one gain per channel of every KV head, so it is pooled with the keys.
    **_rows(
        Family(tensors={r"k_norm\.weight": TensorRule(cached=False)}),
        "cohere flex_olmo minimax_m2 olmo2 olmo3 olmo_hybrid olmoe",
    ),
    # One LayerNorm per KV head, each in tensors of its own.
    "stablelm": Family(
        tensors={r"k_layernorm\.norms\.(?P<head>\d+)\.(weight|bias)": TensorRule(cached=False, stacked=True)}
    ),
    # Fused projections.
    **_rows(Family(tensors={r"qkv_proj\.weight": TensorRule(fused)}), "phi3 phi4_multimodal"),
    **_rows(Family(tensors={r"att_proj\.(weight|bias)": TensorRule(fused)}), "molmo2 molmo2_text"),
    "dbrx": Family(counts=("attn_config.kv_n_heads",), tensors={r"Wqkv\.weight": TensorRule(fused)}),
    "falcon": Family(
        counts=("multi_query",),
        switch=True,
        groups="ends",
        tensors={r"query_key_value\.(weight|bias)": _SWITCH_TENSOR},
        refused_switches={
            "new_decoder_architecture": "falcon's new decoder architecture repeats its KV heads before caching them, "
            "so the cache would not shrink"
        },
    ),
    "gpt_bigcode": Family(
        counts=("multi_query",), switch=True, groups="ends", tensors={r"c_attn\.(weight|bias)": _SWITCH_TENSOR}
    ),
    # Two numbers of KV heads, one for each kind of layer.
    **_rows(
        Family(counts=("num_key_value_heads", "num_global_key_value_heads")),
        "gemma4 gemma4_text gemma4_unified gemma4_unified_text",
    ),
    **_rows(
        Family(
            counts=("num_key_value_heads", "swa_num_key_value_heads"),
            tensors={
                r"(k_sconv|v_sconv)(\.conv1d)?\.weight": TensorRule(cached=False),
                r"(wk_dv|wv_dv)\.weight": TensorRule(),
            },
        ),
        "inkling inkling_text inkling2 inkling2_text",
    ),
    # Sliding layers are hard-wired to twice the KV heads of the others.
    "mimo_v2_flash": Family(
        widest=2,
        tensors={
            r"k_proj\.(weight|bias)": TensorRule(head_width="head_dim"),
            r"v_proj\.(weight|bias)": TensorRule(head_width="v_head_dim"),
        },
    ),
    # Pairs of value heads are concatenated, so their number stays even.
    "diffllama": Family(groups="even"),
    # The dynamic mask reads all value heads and writes one gate per KV head.
    "doge": Family(
        tensors={
            "A": TensorRule(cached=False),
            r"dt_proj\.weight": TensorRule(cached=False, fold=True),
            r"dt_proj\.bias": TensorRule(cached=False),
        }
    ),
    # Other names for K and V.
    "cosmos3_omni": Family(tensors={r"(to_k|to_v)\.(weight|bias)": TensorRule()}),
    "cohere_asr": Family(tensors={r"(key_net|value_net)\.(weight|bias)": TensorRule()}),
    # Several towers, each with a count of its own (blt: the patcher, which only cuts bytes into patches, stays).
    "blt": Family(
        decoders=("global_config", "encoder_config", "decoder_config"),
        tensors={r"cross_attn_(k|v)_proj\.weight": TensorRule()},
    ),
    "t5gemma": Family(decoders=("decoder",)),
    "t5gemma2": Family(decoders=("decoder",)),
    "dia": Family(
        counts=("num_key_value_heads", "cross_num_key_value_heads"),
        decoders=("decoder_config",),
    ),
    "canary": Family(decoders=("decoder_config",)),
    # Classes that ship with the checkpoint (mha2gqa.shipped), besides those with plain tensors.
    "gpt2_gqa": Family(tensors={r"c_attn\.(weight|bias)": TensorRule(fused)}),
    "bloom_gqa": Family(tensors={r"query_key_value\.(weight|bias)": TensorRule(interleaved)}),
    "mpt_gqa": Family(tensors={r"Wqkv\.weight": TensorRule(fused)}),
    **_rows(
        Family(encoder=True, tensors={r"self\.(key|value)\.(weight|bias)": TensorRule()}),
        "bert_gqa bert-generation_gqa camembert_gqa data2vec-text_gqa electra_gqa ernie_gqa roberta_gqa "
        "roberta-prelayernorm_gqa xlm-roberta_gqa xlm-roberta-xl_gqa",
    ),
    **_rows(Family(encoder=True), "deit_gqa dinov2_gqa hubert_gqa vit_gqa wav2vec2_gqa"),
    "distilbert_gqa": Family(encoder=True, tensors={r"(k_lin|v_lin)\.(weight|bias)": TensorRule()}),
    "deberta_gqa": Family(encoder=True, tensors={r"in_proj\.weight": TensorRule(interleaved)}),
    "deberta-v2_gqa": Family(encoder=True, tensors={r"(key_proj|value_proj)\.(weight|bias)": TensorRule()}),
    **_rows(
        Family(counts=tuple(_PARTS), parts=_PARTS, tensors={r"(k|v)\.weight": TensorRule()}),
        "mt5_gqa t5_gqa umt5_gqa",
    ),
    **_rows(
        Family(counts=tuple(_PARTS), parts=_PARTS),
        "bart_gqa blenderbot_gqa blenderbot-small_gqa m2m_100_gqa marian_gqa mbart_gqa pegasus_gqa plbart_gqa "
        "speech_to_text_gqa whisper_gqa",
    ),
    # What cannot be converted, and why.
    **_rows(
        Family(latent=True, refusal=_MLA),
        "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots3_note dots3_note_text "
        "glm4_moe_lite glm_moe_dsa hy_v4 kimi_k25 kimi_linear longcat_flash minicpm3 mistral4 mistral_large4 youtu",
    ),
    "jetmoe": Family(
        refusal="its mixture-of-attention shares one K/V between the experts of a token, so the number of query heads "
        "is KV heads times experts and cannot be kept"
    ),
    "zaya": Family(
        refusal="its keys take in the group mean of the queries and a convolution runs over queries and keys together, "
        "so KV heads cannot be pooled without changing the queries"
    ),
    "neomme": Family(
        refusal="it is an encoder, which has no KV cache, and its value embeddings keep the KV heads in their columns"
    ),
    "moonshine": Family(
        refusal="its transformers class fails in forward as soon as there are fewer KV heads than query heads"
    ),
    **_rows(
        Family(refusal="it stores no K/V of its own but reads the cache of the model that it assists"),
        "gemma4_assistant gemma4_unified_assistant",
    ),
    **_rows(
        Family(
            refusal="its encoders of text and images have no KV cache; a class with a number of KV heads for each of "
            "them would have to be written, as mha2gqa/shipped has for other encoders"
        ),
        "align altclip blip chinese_clip clip clip_text_model clip_vision_model clipseg siglip siglip2 "
        "siglip_text_model siglip_vision_model",
    ),
    **_rows(
        Family(
            refusal="its attention scores have terms that meet each key head with positions of its own, in a second "
            "product; a class whose position terms are shared by a group as well would have to be written"
        ),
        "funnel xlnet",
    ),
    **_rows(
        Family(refusal="it has no attention, and so no keys and values to share"),
        "falcon_mamba fnet mamba mamba2 rwkv xlstm",
    ),
}


def family(model_type: str) -> Family:
    """Return the row of a model type; a type without one is plain."""
    return TABLE.get(model_type, Family())
