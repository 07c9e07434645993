"""What leaves the attention of each family unchanged. NEW FAMILY = ONE ROW.

A method may move a layer's heads only as far as this table says. Contract tests multiply every family's
heads with random numbers of the kind that its row allows, and hold the logits of transformers' own class
against the original's. A model type without a row keeps everything `fixed`: its heads are averaged, and the
report says so, because a wrong guess would ruin a model without an error.

A row says what no module shows (how rotary planes pair up, gates, norms without gains); norms with gains,
the width of the rotation and clipping are read off the module and the config by `attention.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mha2gqa.heads.attention import Freedom, Pairing


@dataclass(frozen=True, kw_only=True)
class FreedomRow:
    """One row: the freedom of a model type's heads."""

    keys: Freedom = "free"
    values: Freedom = "free"
    pairing: Pairing = "half"
    """Which rows of a key head rotate together."""
    followers: tuple[str, ...] = ()
    """Other parameters of the module with rows for each query head; they follow when heads are sorted."""
    bystanders: tuple[str, ...] = ()
    """Other parameters of the module that no order of heads concerns."""
    ordered: bool = False
    """Heads may not change places: position biases, kept or computed outside the module, know them by number."""
    whole_width: bool = False
    """Planes pair up over the whole head, also where only a part of them turns."""
    windows_rotate: bool = False
    """Only layers with a sliding window rotate."""
    unrotated_keys: Freedom | None = None
    """Freedom of the keys of layers that do not rotate, where it is another."""


def _rows(row: FreedomRow, model_types: str) -> dict[str, FreedomRow]:
    return dict.fromkeys(model_types.split(), row)


_GATED = ("gate_proj.weight", "gate_bias")

FREEDOM: Mapping[str, FreedomRow] = {
    **_rows(
        FreedomRow(),
        "apertus arcee aria_text bamba canary_decoder cohere_asr cohere_compass_text cwm dbrx dia_decoder dots1 "
        "emu3_text_model eurobert exaone4 exaone_moe falcon falcon_h1 flex_olmo gemma gemma2 gemma3_text glm4_moe "
        "glm4v_moe_text gpt_bigcode granite granite_docling_text granitemoe granitemoehybrid granitemoeshared "
        "higgs_audio_v2 hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text hy_v3 hyperclovax internlm3 iquestcoder jais2 "
        "jamba kolibri1 lfm2 lfm2_moe llama mellum minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral "
        "mixtral mllama_text_model molmo2_text moshi nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe "
        "paddleocr_vl_text phi phi3 phi4_multimodal phimoe qwen2 qwen2_5_omni_text qwen2_5_vl_text qwen2_moe "
        "qwen2_vl_text qwen3 qwen3_moe qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text recurrent_gemma seed_oss "
        "smollm3 solar_open stablelm starcoder2 t5_gemma_module t5gemma2_decoder ultrabert unlimited_ocr_text "
        "vaultgemma voxtral_realtime_text zamba zamba2",
    ),
    **_rows(
        FreedomRow(pairing="interleaved"),
        "cohere ernie4_5 ernie4_5_moe glm glm4 glm4v_text glm_ocr_text helium",
    ),
    **_rows(FreedomRow(pairing="interleaved", windows_rotate=True), "cohere2 cohere2_moe"),
    # Attention sinks: one number per query head.
    **_rows(FreedomRow(followers=("sinks",)), "flint gpt_oss granite_swa granitemoe_swa mimo_v2_flash"),
    # A gate per query head.
    **_rows(FreedomRow(followers=("g_proj.weight",)), "laguna lfm3 step3p5"),
    # A gate per channel of every query head.
    **_rows(FreedomRow(values="scaled", followers=_GATED), "afmoe beam"),
    "muse_glimmer_text": FreedomRow(keys="normed", values="scaled", followers=_GATED),
    **_rows(FreedomRow(values="scaled"), "qwen3_5_moe_text qwen3_5_text qwen3_next"),
    # Norms without gains.
    "nanochat": FreedomRow(keys="normed"),
    "llama4_text": FreedomRow(keys="signed", pairing="interleaved", unrotated_keys="free"),  # they have no norm
    **_rows(FreedomRow(values="normed", whole_width=True), "gemma3n_text gemma4_text gemma4_unified_text"),
    # A norm over all value heads at once.
    "bitnet": FreedomRow(values="signed"),
    # Classes that ship with the checkpoint. DeBERTa's keys and queries meet positions, too: it has no row.
    **_rows(
        FreedomRow(),
        "bart_gqa blenderbot_gqa blenderbot-small_gqa deit_gqa dinov2_gqa distilbert_gqa gpt2_gqa hubert_gqa "
        "m2m_100_gqa marian_gqa mbart_gqa opt_gqa pegasus_gqa plbart_gqa speech_to_text_gqa vit_gqa wav2vec2_gqa "
        "whisper_gqa",
    ),
    **_rows(FreedomRow(ordered=True), "bloom_gqa mpt_gqa mt5_gqa t5_gqa umt5_gqa"),
    **_rows(
        FreedomRow(bystanders=("output.LayerNorm.weight", "output.LayerNorm.bias")),
        "bert_gqa bert-generation_gqa camembert_gqa data2vec-text_gqa electra_gqa ernie_gqa roberta_gqa "
        "xlm-roberta_gqa",
    ),
    "roberta-prelayernorm_gqa": FreedomRow(bystanders=("LayerNorm.weight", "LayerNorm.bias")),
    "xlm-roberta-xl_gqa": FreedomRow(bystanders=("self_attn_layer_norm.weight", "self_attn_layer_norm.bias")),
    # Values that are read in pairs, or by a mask.
    **_rows(FreedomRow(values="fixed"), "diffllama doge"),
}


def freedom_row(model_type: str) -> FreedomRow:
    """Return the row of a model type; one without a row may move nothing."""
    return FREEDOM.get(model_type, FreedomRow(keys="fixed", values="fixed"))
