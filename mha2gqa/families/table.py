"""Families: how each model type keeps attention, and what leaves it unchanged. NEW FAMILY = ONE ROW.

A type without a row is plain: its config has `num_key_value_heads`, and the tensors that depend on it are `k_proj` and
`v_proj`, which transformers itself finds (`changes.py`). Its heads are averaged where they are. A row says what is
different (`row.py` has the fields), and what a method may do to the heads; that alone, for most.

Tests hold every row, and every family without one, against transformers' own class: contract tests convert it, and
heads multiplied with random numbers of the kinds that its row allows must leave its logits as they are.

No name of a model decides anything, only `model_type`. Types in one string share a row.
"""

from collections.abc import Mapping

from mha2gqa.families.layouts import fused, interleaved
from mha2gqa.families.row import Family, Freedoms, TensorRule


def _rows(row: Family, model_types: str) -> dict[str, Family]:
    return dict.fromkeys(model_types.split(), row)


_FREE = Freedoms()
_INTERLEAVED = Freedoms(pairing="interleaved")
_GATES = ("gate_proj.weight", "gate_bias")

_OWN_COUNTS = {f"{part}_key_value_heads": part for part in ("decoder", "cross", "encoder")}
_KEY_NORM = {r"k_norm\.weight": TensorRule(cached=False)}
"""Full-width key norm: one gain per channel of every KV head, so it is pooled with the keys."""
_SWITCHED = TensorRule(source=interleaved, multi_query=fused)
_BERT = {r"self\.(key|value)\.(weight|bias)": TensorRule()}
_MLA = (
    "its multi-head latent attention (MLA) caches one latent vector per token for all heads, whose size does not "
    "depend on num_key_value_heads"
)

_PLAIN: Mapping[str, Family] = {
    **_rows(
        Family(freedom=_FREE),
        "apertus arcee aria_text bamba canary_decoder cohere_compass_text cwm dia_decoder dots1 emu3_text_model "
        "eurobert exaone4 exaone_moe falcon_h1 gemma gemma2 gemma3_text glm4_moe glm4v_moe_text granite "
        "granite_docling_text granitemoe granitemoehybrid granitemoeshared higgs_audio_v2 hunyuan_v1_dense "
        "hunyuan_v1_moe hunyuan_vl_text hy_v3 hyperclovax internlm3 iquestcoder jais2 jamba kolibri1 lfm2 lfm2_moe "
        "llama mellum minimax minimax_m3_vl_text ministral ministral3 mistral mixtral mllama_text_model moshi "
        "nemotron nemotron_h olmo paddleocr_vl_text phi phimoe qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_moe "
        "qwen2_vl_text qwen3 qwen3_moe qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text recurrent_gemma seed_oss "
        "smollm3 solar_open starcoder2 t5_gemma_module t5gemma2_decoder ultrabert unlimited_ocr_text vaultgemma "
        "voxtral_realtime_text zamba zamba2",
    ),
    **_rows(Family(freedom=_INTERLEAVED), "ernie4_5 ernie4_5_moe glm glm4 glm4v_text glm_ocr_text helium"),
    **_rows(Family(freedom=Freedoms(pairing="interleaved", windows_rotate=True)), "cohere2 cohere2_moe"),
    # Attention sinks: one number per query head.
    **_rows(Family(freedom=Freedoms(followers=("sinks",))), "flint gpt_oss granite_swa granitemoe_swa"),
    # A gate per query head.
    **_rows(Family(freedom=Freedoms(followers=("g_proj.weight",))), "laguna lfm3 step3p5"),
    # A gate per channel of every query head.
    **_rows(Family(freedom=Freedoms(values="scaled", followers=_GATES)), "afmoe beam"),
    "muse_glimmer_text": Family(freedom=Freedoms(keys="normed", values="scaled", followers=_GATES)),
    **_rows(Family(freedom=Freedoms(values="scaled")), "qwen3_5_moe_text qwen3_5_text qwen3_next"),
    # Norms without gains; Llama 4 has none in layers that do not rotate.
    "nanochat": Family(freedom=Freedoms(keys="normed")),
    "llama4_text": Family(freedom=Freedoms(keys="signed", pairing="interleaved", unrotated_keys="free")),
    "gemma3n_text": Family(freedom=Freedoms(values="normed", whole_width=True)),
    # A norm over all value heads at once.
    "bitnet": Family(freedom=Freedoms(values="signed")),
}
"""Types that are plain but for what may be done to their heads."""

_SPECIAL: Mapping[str, Family] = {
    **_rows(
        Family(tensors=_KEY_NORM, freedom=_FREE),
        "flex_olmo minimax_m2 olmo2 olmo3 olmo_hybrid olmoe",
    ),
    "cohere": Family(tensors=_KEY_NORM, freedom=_INTERLEAVED),
    # One LayerNorm per KV head, each in tensors of its own.
    "stablelm": Family(
        tensors={r"k_layernorm\.norms\.(?P<head>\d+)\.(weight|bias)": TensorRule(cached=False, stacked=True)},
        freedom=_FREE,
    ),
    # Fused projections.
    **_rows(Family(tensors={r"qkv_proj\.weight": TensorRule(fused)}, freedom=_FREE), "phi3 phi4_multimodal"),
    **_rows(Family(tensors={r"att_proj\.(weight|bias)": TensorRule(fused)}, freedom=_FREE), "molmo2 molmo2_text"),
    "dbrx": Family(counts=("attn_config.kv_n_heads",), tensors={r"Wqkv\.weight": TensorRule(fused)}, freedom=_FREE),
    "falcon": Family(
        counts=("multi_query",),
        switch=True,
        groups="ends",
        tensors={r"query_key_value\.(weight|bias)": _SWITCHED},
        freedom=_FREE,
        refused_switches={
            "new_decoder_architecture": "falcon's new decoder architecture repeats its KV heads before caching them, "
            "so the cache would not shrink"
        },
    ),
    "gpt_bigcode": Family(
        counts=("multi_query",),
        switch=True,
        groups="ends",
        tensors={r"c_attn\.(weight|bias)": _SWITCHED},
        freedom=_FREE,
    ),
    # Two numbers of KV heads, one for each kind of layer.
    **_rows(
        Family(
            counts=("num_key_value_heads", "num_global_key_value_heads"),
            freedom=Freedoms(values="normed", whole_width=True),
        ),
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
        freedom=Freedoms(followers=("sinks",)),
    ),
    # Values are read in pairs, so their number stays even.
    "diffllama": Family(groups="even", freedom=Freedoms(values="fixed")),
    # The dynamic mask reads all value heads and writes one gate per KV head.
    "doge": Family(
        tensors={
            "A": TensorRule(cached=False),
            r"dt_proj\.weight": TensorRule(cached=False, fold=True),
            r"dt_proj\.bias": TensorRule(cached=False),
        },
        freedom=Freedoms(values="fixed"),
    ),
    # Other names for K and V.
    "cosmos3_omni": Family(tensors={r"(to_k|to_v)\.(weight|bias)": TensorRule()}),
    "cohere_asr": Family(tensors={r"(key_net|value_net)\.(weight|bias)": TensorRule()}, freedom=_FREE),
    # Several towers, each with a count of its own (blt: the patcher, which only cuts bytes into patches, stays).
    "blt": Family(
        decoders=("global_config", "encoder_config", "decoder_config"),
        tensors={r"cross_attn_(k|v)_proj\.weight": TensorRule()},
    ),
    **_rows(Family(decoders=("decoder",)), "t5gemma t5gemma2"),
    "dia": Family(counts=("num_key_value_heads", "cross_num_key_value_heads"), decoders=("decoder_config",)),
    "canary": Family(decoders=("decoder_config",)),
}

_SHIPPED: Mapping[str, Family] = {
    "opt_gqa": Family(freedom=_FREE),
    "gpt2_gqa": Family(tensors={r"c_attn\.(weight|bias)": TensorRule(fused)}, freedom=_FREE),
    "bloom_gqa": Family(
        tensors={r"query_key_value\.(weight|bias)": TensorRule(interleaved)}, freedom=Freedoms(ordered=True)
    ),
    "mpt_gqa": Family(tensors={r"Wqkv\.weight": TensorRule(fused)}, freedom=Freedoms(ordered=True)),
    **_rows(
        Family(
            encoder=True,
            tensors=_BERT,
            freedom=Freedoms(bystanders=("output.LayerNorm.weight", "output.LayerNorm.bias")),
        ),
        "bert_gqa bert-generation_gqa camembert_gqa data2vec-text_gqa electra_gqa ernie_gqa roberta_gqa "
        "xlm-roberta_gqa",
    ),
    "roberta-prelayernorm_gqa": Family(
        encoder=True, tensors=_BERT, freedom=Freedoms(bystanders=("LayerNorm.weight", "LayerNorm.bias"))
    ),
    "xlm-roberta-xl_gqa": Family(
        encoder=True,
        tensors=_BERT,
        freedom=Freedoms(bystanders=("self_attn_layer_norm.weight", "self_attn_layer_norm.bias")),
    ),
    **_rows(Family(encoder=True, freedom=_FREE), "deit_gqa dinov2_gqa hubert_gqa vit_gqa wav2vec2_gqa"),
    "distilbert_gqa": Family(encoder=True, tensors={r"(k_lin|v_lin)\.(weight|bias)": TensorRule()}, freedom=_FREE),
    # Their keys and queries meet positions, too, in products of their own: nothing may be done to them.
    "deberta_gqa": Family(encoder=True, tensors={r"in_proj\.weight": TensorRule(interleaved)}),
    "deberta-v2_gqa": Family(encoder=True, tensors={r"(key_proj|value_proj)\.(weight|bias)": TensorRule()}),
    # Encoder-decoders: a count for each kind of attention.
    **_rows(
        Family(
            counts=tuple(_OWN_COUNTS),
            parts=_OWN_COUNTS,
            tensors={r"(k|v)\.weight": TensorRule()},
            freedom=Freedoms(ordered=True),
        ),
        "mt5_gqa t5_gqa umt5_gqa",
    ),
    **_rows(
        Family(counts=tuple(_OWN_COUNTS), parts=_OWN_COUNTS, freedom=_FREE),
        "bart_gqa blenderbot_gqa blenderbot-small_gqa m2m_100_gqa marian_gqa mbart_gqa pegasus_gqa plbart_gqa "
        "speech_to_text_gqa whisper_gqa",
    ),
}
"""Classes that ship with the checkpoint (`mha2gqa.shipped`)."""

_REFUSED: Mapping[str, Family] = {
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
"""What cannot be converted, and why."""

TABLE: dict[str, Family] = {**_PLAIN, **_SPECIAL, **_SHIPPED, **_REFUSED}
"""Model type -> its row."""


def family(model_type: str) -> Family:
    """Return the row of a model type; a type without one is plain, and nothing may be done to its heads."""
    return TABLE.get(model_type, Family())
