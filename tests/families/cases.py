"""Which families the contract tests convert (`CASES`), and which a conversion must refuse (`REFUSED`).

A `Case` says how to build a tiny source (`tiny.py`), where its `config.json` keeps the KV-head count, and how to run
it. Every causal model type of transformers is in `CASES`, in `REFUSED` or, where its class imports a library that the
tests do not require, in `UNBUILDABLE`; `test_contract.py` holds that. Nothing here runs anything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Path = tuple[str, ...]
Run = Literal["causal", "masked", "seq2seq", "encoded", "codes", "streamed"]
Refusal = Literal["latent", "one count", "no attention", "routed", "convolved", "broken", "drafter", "columns"]

HEADS = 4
TEXT: Path = ("text_config", "num_key_value_heads")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One tiny checkpoint and the conversions of it to be tested."""

    model_type: str
    variant: str = "default"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Config fields on top of the tiny defaults; nested dicts reach into sub-configs."""
    count: Path = ("num_key_value_heads",)
    """Where config.json keeps the main KV-head count (or the `multi_query` switch)."""
    source_heads: int = HEADS
    """KV heads at `count` in the source."""
    other_counts: Mapping[Path, int] = field(default_factory=dict)
    """Further counts that a conversion has to rewrite, and their values in the source."""
    may_change: tuple[Path, ...] = ()
    """Keys that say nothing of their own once `count` is rewritten; a conversion may update them."""
    groups: tuple[int, ...] = (4, 2, 1)
    at_most: bool = False
    """Layers differ: each keeps at most G heads, instead of G / `source_heads` of its own."""
    run: Run = "causal"
    eager: bool = True
    """The class can run eager attention too, next to what it loads with (sdpa, where it supports that)."""
    generates: bool = True
    """The source can generate from these inputs."""
    caches: bool = True
    """The source's output carries a KV cache."""

    def __str__(self) -> str:
        return self.model_type if self.variant == "default" else f"{self.model_type}-{self.variant}"

    def kept(self, heads: int, groups: int) -> int:
        """KV heads left of a layer that has `heads`."""
        return min(heads, groups) if self.at_most else heads * groups // self.source_heads

    def counts(self, groups: int) -> dict[Path, int | bool]:
        """Value of every count in the converted config.json."""
        main = groups < self.source_heads if self.count[-1] == "multi_query" else groups
        return {self.count: main} | {path: self.kept(heads, groups) for path, heads in self.other_counts.items()}


def _causal() -> Iterator[Case]:
    plain = """
        afmoe apertus arcee aria_text bamba beam bitnet cohere cohere2 cohere2_moe cohere_compass_text cwm dots1
        ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon_h1 flex_olmo flint gemma gemma2 gemma3_text gemma3n_text
        gemma4_text gemma4_unified_text glm glm4 glm4_moe gpt_oss granite granite_swa granitemoe granitemoe_swa
        granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3
        iquestcoder jais2 jamba kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text mellum minimax minimax_m2
        minimax_m3_vl_text ministral ministral3 mistral mixtral moshi nanochat nemotron nemotron_h olmo olmo2
        olmo3 olmo_hybrid olmoe phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text
        qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text seed_oss smollm3 solar_open stablelm starcoder2
        vaultgemma zamba zamba2
    """
    for model_type in plain.split():
        yield Case(model_type=model_type)

    attention_bias = """
        afmoe apertus arcee aria_text bamba beam bitnet cohere cohere2 cohere2_moe cohere_compass_text dots1
        falcon_h1 flex_olmo flint gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm4_moe
        granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense
        hunyuan_v1_moe hy_v3 hyperclovax iquestcoder laguna lfm3 llama llama4_text mellum nanochat nemotron
        nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe phimoe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe
        qwen3_next qwen4_exp_text smollm3 solar_open vaultgemma
    """
    for model_type in attention_bias.split():
        yield Case(model_type=model_type, variant="bias", overrides={"attention_bias": True})
    for model_type in ("ernie4_5", "ernie4_5_moe"):
        yield Case(model_type=model_type, variant="bias", overrides={"use_bias": True})
    for model_type in ("glm", "glm4", "gpt_oss", "jais2", "seed_oss"):
        yield Case(model_type=model_type, variant="no-bias", overrides={"attention_bias": False})
    for model_type in ("diffllama", "doge", "recurrent_gemma"):
        for variant, bias in (("default", False), ("bias", True)):
            yield Case(
                model_type=model_type,
                variant=variant,
                overrides={"attention_bias": bias},
                groups=(4, 2) if model_type == "diffllama" else (4, 2, 1),
                caches=model_type != "recurrent_gemma",
            )
    yield Case(model_type="qwen2_moe", variant="no-bias", overrides={"qkv_bias": False})
    yield Case(model_type="starcoder2", variant="no-bias", overrides={"use_bias": False})


def _causal_variants() -> Iterator[Case]:
    """Other tensors, other keys or other places than the plain families have."""
    yield Case(model_type="bitnet", variant="tied", overrides={"tie_word_embeddings": True})
    yield Case(model_type="cohere", variant="qk-norm", overrides={"use_qk_norm": True})
    yield Case(model_type="dbrx", count=("attn_config", "kv_n_heads"))
    yield Case(model_type="glm4_moe", variant="qk-norm", overrides={"use_qk_norm": True, "attention_bias": True})
    yield Case(model_type="olmo", variant="clipped", overrides={"clip_qkv": 0.5})
    yield Case(model_type="phi", variant="qk-norm", overrides={"qk_layernorm": True})
    yield Case(model_type="stablelm", variant="bias", overrides={"use_qkv_bias": True})
    yield Case(model_type="stablelm", variant="qk-norm", overrides={"qk_layernorm": True, "use_qkv_bias": True})
    yield Case(
        model_type="stablelm", variant="parallel", overrides={"use_parallel_residual": True, "use_qkv_bias": True}
    )
    yield Case(model_type="gemma3n_text", variant="shared-layers", overrides={"num_kv_shared_layers": 2})
    yield Case(model_type="gemma4_text", variant="shared-layers", overrides={"num_kv_shared_layers": 2})
    yield Case(
        model_type="gemma4_text",
        variant="two-counts",
        overrides={"num_global_key_value_heads": 2, "global_head_dim": 32, "attention_k_eq_v": True},
        other_counts={("per_layer_config", layer, "num_key_value_heads"): 2 for layer in ("1", "3")},
        at_most=True,
    )
    for bias in (False, True):
        yield Case(
            model_type="mimo_v2_flash",
            variant="bias" if bias else "default",
            overrides={"attention_bias": bias},
            source_heads=2,
            groups=(2, 1),
        )
    for model_type in ("inkling_text", "inkling2_text"):
        yield Case(model_type=model_type, other_counts={("swa_num_key_value_heads",): 4})
    yield Case(
        model_type="blt",
        count=("global_config", "num_key_value_heads"),
        other_counts={("encoder_config", "num_key_value_heads"): 4, ("decoder_config", "num_key_value_heads"): 4},
        generates=False,
        caches=False,
    )
    for parallel in (True, False):
        yield Case(
            model_type="falcon",
            variant="parallel" if parallel else "alibi",
            overrides={"parallel_attn": parallel, "alibi": not parallel, "bias": not parallel},
            count=("multi_query",),
            may_change=(("num_kv_heads",),),
            groups=(4, 1),
        )
    yield Case(model_type="gpt_bigcode", count=("multi_query",), may_change=(("num_key_value_heads",),), groups=(4, 1))


def _grouped_sources() -> Iterator[Case]:
    """Sources that are GQA already: 2 KV heads for 4 query heads."""
    for model_type in ("llama", "qwen2", "olmo2", "gemma3_text", "phi3", "cohere", "qwen3_next"):
        overrides: dict[str, Any] = {"num_key_value_heads": 2}
        if model_type == "cohere":
            overrides["use_qk_norm"] = True
        yield Case(model_type=model_type, variant="gqa", overrides=overrides, source_heads=2, groups=(2, 1))
    yield Case(
        model_type="dbrx",
        variant="gqa",
        overrides={"attn_config": {"kv_n_heads": 2}},
        count=("attn_config", "kv_n_heads"),
        source_heads=2,
        groups=(2, 1),
    )
    yield Case(
        model_type="llava",
        variant="gqa",
        overrides={"text_config": {"num_key_value_heads": 2}},
        count=TEXT,
        source_heads=2,
        groups=(2, 1),
    )


def _multimodal() -> Iterator[Case]:
    """Composite classes, run on text alone; vision and audio towers keep their heads."""
    text_forward = """
        aria audioflamingo3 aya_vision cohere2_vision cohere_compass cosmos3_omni deepseek_vl deepseek_vl_hybrid
        emu3 exaone4_5 gemma3 gemma4 gemma4_unified glm46v glm4v glm4v_moe glm_ocr glmasr glmga got_ocr2
        granite_docling granite_speech granite_speech_plus hunyuan_vl hyperclovax_vision_v2 idefics2 idefics3
        internvl lfm2_vl lfm3_vl lighton_ocr llama4 llava llava_next llava_next_video llava_onevision
        minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3 mllama molmo2 moss_transcribe_diarize
        muse_glimmer musicflamingo ovis2 paddleocr_vl paligemma pp_chart2table qianfan_ocr qwen2_5_vl
        qwen2_audio qwen2_vl qwen3_5 qwen3_5_moe qwen3_asr qwen3_vl qwen3_vl_moe qwen4_exp smolvlm step3p7
        vibevoice_asr video_llama_3 video_llava vipllava voxtral
    """
    for model_type in text_forward.split():
        yield Case(model_type=model_type, count=TEXT)
    for model_type in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "vibevoice"):
        yield Case(model_type=model_type, count=TEXT, generates=False)
    yield Case(model_type="unlimited_ocr", count=TEXT, eager=False)
    yield Case(model_type="voxtral_realtime", count=TEXT, run="streamed", generates=False)
    yield Case(model_type="inkling2", count=TEXT, other_counts={("text_config", "swa_num_key_value_heads"): 4})


def _encoders_and_speech() -> Iterator[Case]:
    for model_type in ("eurobert", "ultrabert"):
        yield Case(model_type=model_type, run="masked", generates=False, caches=False)
    yield Case(model_type="ultravbert", count=TEXT, run="masked", generates=False, caches=False)
    yield Case(model_type="t5gemma", count=("decoder", "num_key_value_heads"), run="seq2seq")
    yield Case(model_type="t5gemma2", count=("decoder", "num_key_value_heads"), run="seq2seq")
    yield Case(model_type="canary", count=("decoder_config", "num_key_value_heads"), run="encoded")
    yield Case(model_type="cohere_asr", run="encoded")
    yield Case(model_type="higgs_audio_v2")
    yield Case(
        model_type="dia",
        count=("decoder_config", "num_key_value_heads"),
        other_counts={("decoder_config", "cross_num_key_value_heads"): 4},
        run="codes",
    )


KINDS: Mapping[str, tuple[Case, ...]] = {
    "language models": (*_causal(), *_causal_variants(), *_grouped_sources()),
    "models with a text tower, which alone is converted": (*_multimodal(),),
    "encoders, encoder-decoders (of these the decoder) and speech": (*_encoders_and_speech(),),
}
CASES: tuple[Case, ...] = tuple(case for cases in KINDS.values() for case in cases)
"""Every conversion that the contract tests make."""

_REFUSED: dict[Refusal, str] = {
    # K and V are expanded from one compressed vector; the count in the config has no effect.
    "latent": """
        axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots3_note dots3_note_text
        glm4_moe_lite glm_moe_dsa hy_v4 kimi_linear longcat_flash minicpm3 youtu mistral4 kimi_k25
        mistral_large4
    """,
    # The class has one head count, for queries, keys and values alike.
    "one count": """
        big_bird bigbird_pegasus cpmant ctrl fuyu git gpt_neo hrm_text megatron-bert modernbert-decoder musicgen
        musicgen_melody mvp openai-gpt persimmon prophetnet reformer rembert roc_bert roformer trocr xlm xlnet xmod
    """,
    "no attention": "falcon_mamba mamba mamba2 rwkv xlstm",
    # The experts hold the KV heads of the layer.
    "routed": "jetmoe",
    # Keys are mixed with queries, or convolved across heads, behind the projection.
    "convolved": "zaya",
    # The class loads fewer KV heads and cannot run them.
    "broken": "moonshine",
    # Has no K and V of its own: reads the cache of the model it drafts for.
    "drafter": "gemma4_assistant gemma4_unified_assistant",
    # An encoder whose value embeddings keep the KV heads in their columns.
    "columns": "neomme",
}
REFUSED: dict[str, Refusal] = {name: reason for reason, names in _REFUSED.items() for name in names.split()}
"""Model types that cannot have fewer KV heads, and why."""

HOSTED = frozenset(["biogpt", "codegen", "gpt-sw3", "gpt2", "gpt_neox", "gpt_neox_japanese", "gptj", "opt", "xglm"])
"""Model types with one head count that are written in another class, which `tests/hosts` holds against their own."""

SHIPPED = frozenset(
    [
        "bart",
        "bert",
        "bert-generation",
        "blenderbot",
        "blenderbot-small",
        "bloom",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "marian",
        "mbart",
        "mpt",
        "pegasus",
        "plbart",
        "roberta",
        "roberta-prelayernorm",
        "t5",
        "whisper",
        "xlm-roberta",
        "xlm-roberta-xl",
    ]
)
"""Model types with one head count whose new class ships with the result, which `tests/shipped` holds."""

WITHOUT_MODEL = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})
"""Refused types that transformers 5.23.0 cannot build from its own default config: every layer shares, none stores."""

UNBUILDABLE: dict[str, str] = {"gemma3n": "timm"}
"""Model types whose class imports a library that the tests do not require."""
