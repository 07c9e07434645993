"""`inspect`: parameters and KV cache against published models' numbers, and against the caches that models really fill.

`PUBLISHED` are config.json files as their authors wrote them, shortened to the keys that size a model; the bytes beside
them are worked out by hand. That the formula is the cache that a model fills is part of every family's contract
(`families/test_contract.py`).
Nothing here has weights on disk: `inspect` must not need them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mha2gqa.cli import app
from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.verbs.bench.asked import SHAPES
from mha2gqa.verbs.inspect.options import InspectOptions
from mha2gqa.verbs.inspect.run import InspectReport, inspect
from tests.families.tiny import save_tiny

KIB, MIB = 1024, 1024**2

QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
GEMMA_2_9B = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 256,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "torch_dtype": "float32",
    "vocab_size": 256000,
}
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
PHI_3_MINI_4K = {
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 32000,
    "rope_scaling": None,
    "sliding_window": 2047,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
LLAVA_1_5_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
LLAMA_4_SCOUT = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "text_config": {
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "model_type": "llama4_text",
        "no_rope_layers": [],
        "num_attention_heads": 40,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "torch_dtype": "bfloat16",
        "vocab_size": 202048,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "llama4_vision_model", "num_attention_heads": 16, "num_hidden_layers": 34},
}
# Numbers of K and V per token and layer, times bytes, times layers. The last is the cache of 32k tokens.
PUBLISHED = {
    # 2 · 4 heads · 128 · 2 B · 28 layers; use_sliding_window is off
    "Qwen2-7B": (QWEN2_7B, 57_344, 57_344 * 32 * KIB),
    # 2 · 32 · 128 · 2 B · 32
    "Llama-2-7B": (LLAMA_2_7B, 524_288, 16 * 1024 * MIB),
    # 2 · 8 · 128 · 2 B · 32; every layer keeps 4096 tokens
    "Mistral-7B": (MISTRAL_7B, 131_072, 131_072 * 4096),
    # 2 · 8 · 256 · 4 B · 42; every other layer keeps 4096 tokens
    "Gemma-2-9b": (GEMMA_2_9B, 688_128, 2 * 8 * 256 * 4 * 21 * (32 * KIB + 4096)),
    # 2 · 8 · 128 · 2 B · 32; the experts have no cache
    "Mixtral-8x7B": (MIXTRAL_8X7B, 131_072, 4 * 1024 * MIB),
    # 2 · 32 · 96 · 2 B · 32; every layer keeps 2047 tokens
    "Phi-3-mini-4k": (PHI_3_MINI_4K, 393_216, 393_216 * 2047),
    # 2 · 8 · 128 · 2 B · 48; three of four layers attend inside chunks of 8192 tokens
    "Llama-4-Scout": (LLAMA_4_SCOUT, 196_608, 2 * 8 * 128 * 2 * (36 * 8192 + 12 * 32 * KIB)),
    # As Llama-2-7B, whose sizes are the defaults of its text_config; the vision tower caches nothing
    "LLaVA-1.5-7b": (LLAVA_1_5_7B, 524_288, 16 * 1024 * MIB),
}

DEEPSEEK_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "first_k_dense_replace": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "num_attention_heads": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
DEEPSEEK_V3 = DEEPSEEK_V2 | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "rope_scaling": DEEPSEEK_V2["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}


def inspect_config(config: ConfigJson, directory: Path) -> InspectReport:
    (directory / "config.json").write_text(json.dumps(config))
    return inspect(InspectOptions(model=str(directory)))


# ---------------------------------------------------------------------------------------------- published models


def test_qwen2_7b_has_its_published_parameters(tmp_path: Path) -> None:
    report = inspect_config(QWEN2_7B, tmp_path)
    # q and o 3584², k and v 3584 · 512, biases 3584 + 2 · 512; three MLP matrices of 3584 · 18944
    assert report.layer_kinds == [{"layers": 28, "attention": 29_364_736, "mlp": 203_685_888, "norm": 2 * 3584}]
    assert report.parameters_by_role["attention"] + report.parameters_by_role["mlp"] == 6_525_417_472
    assert report.parameters_by_role["embedding"] == 2 * 152_064 * 3584
    assert report.parameters == 7_615_616_512
    assert (report.query_heads, report.kv_heads, report.head_width, report.dtype) == (28, 4, 128, "BF16")
    assert [(row.groups, row.tensor_parallel) for row in report.rows] == [(4, [1, 2, 4]), (2, [1, 2]), (1, [1])]
    assert [row.bytes_per_token for row in report.rows] == [57_344, 28_672, 14_336]
    assert report.convertible


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cache_of_a_published_model(name: str, tmp_path: Path) -> None:
    config, per_token, at_32k = PUBLISHED[name]
    report = inspect_config(config, tmp_path)
    now, fewest = report.rows[0], report.rows[-1]
    assert now.bytes_per_token == per_token
    assert now.bytes_at[32 * KIB] == at_32k
    assert (fewest.groups, fewest.bytes_per_token, fewest.bytes_at[32 * KIB]) == (
        1,
        per_token // report.kv_heads,
        at_32k // report.kv_heads,
    )


def test_tensor_parallel_sizes_divide_query_heads_and_kv_heads(tmp_path: Path) -> None:
    config = LLAMA_2_7B | {"num_attention_heads": 36, "num_key_value_heads": 12, "head_dim": 128, "hidden_size": 4608}
    rows = inspect_config(config, tmp_path).rows
    assert {row.groups: row.tensor_parallel for row in rows} == {
        12: [1, 2, 3, 4, 6, 12],
        6: [1, 2, 3, 6],
        4: [1, 2, 4],
        3: [1, 3],
        2: [1, 2],
        1: [1],
    }


@pytest.mark.parametrize(("config", "layers"), [(DEEPSEEK_V2, 60), (DEEPSEEK_V3, 61)], ids=["V2", "V3"])
def test_latent_attention_is_counted_and_refused(config: ConfigJson, layers: int, tmp_path: Path) -> None:
    report = inspect_config(config, tmp_path)
    (row,) = report.rows
    assert (report.layers, report.latent, report.kv_heads, report.head_width) == (layers, True, 0, None)
    assert row.bytes_per_token == (512 + 64) * 2 * layers
    assert row.bytes_at[128 * KIB] == (512 + 64) * 2 * layers * 128 * KIB
    assert not report.convertible
    assert "MLA" in report.verdict
    assert config["model_type"] in report.verdict


def test_a_model_with_one_kv_head_has_nothing_to_convert(tmp_path: Path) -> None:
    report = inspect_config(LLAMA_2_7B | {"num_key_value_heads": 1}, tmp_path)
    assert [row.groups for row in report.rows] == [1]
    assert "one KV head" in report.verdict


def test_a_quantised_checkpoint_is_described_and_refused(tmp_path: Path) -> None:
    config = LLAMA_2_7B | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    report = inspect_config(config, tmp_path)
    assert report.rows[0].bytes_per_token == 524_288
    assert not report.convertible
    assert "gptq" in report.verdict


# ---------------------------------------------------------------------------------------------- command line


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_numbers_are_printed_for_a_directory_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_7B))
    printed = run(str(tmp_path))
    for number in ("29,364,736", "203,685,888", "6,525,417,472", "57,344 B", "28 query heads, 4 KV heads, 128 wide"):
        assert number in printed
    assert "convert can make 2, 1" in printed


def test_the_report_is_one_json_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL_7B))
    report: dict[str, Any] = json.loads(run(str(tmp_path), "--json"))
    assert report["rows"][0]["bytes_per_token"] == 131_072
    assert report["rows"][0]["bytes_at"][str(32 * KIB)] == 131_072 * 4096
    assert report["layer_kinds"][0]["layers"] == 32


def test_the_weights_decide_the_dtype_where_there_are_any(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, dtype=torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text())
    report = inspect_config(config | {"dtype": "float32"}, tmp_path)
    # 2 · 4 heads · 16 · 2 B · 2 layers
    assert (report.dtype, report.rows[0].bytes_per_token) == ("BF16", 512)


def test_latents_are_shown_beside_every_number_of_heads(tmp_path: Path) -> None:
    shutil.copy(SHAPES / "llama-2-7b.json", tmp_path / "config.json")
    report = inspect(InspectOptions(model=str(tmp_path)))
    assert {row.groups: row.bytes_per_token for row in report.latents if row.groups} == {
        row.groups: row.bytes_per_token for row in report.rows[1:]
    }
    (preset,) = (row for row in report.latents if row.groups is None)
    # 32 layers of 576 numbers of 2 bytes
    assert (preset.numbers, preset.rope_widths, preset.bytes_per_token) == (576, [64], 36_864)
    assert [row.numbers for row in report.latents if row.kernels] == [576]
    assert "vLLM's MLA kernels" in run(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "says"),
    [(MISTRAL_7B, "sliding window"), (QWEN2_7B, "vLLM and llama.cpp would not run it: attention has biases")],
    ids=["refused", "biases"],
)
def test_what_stands_against_a_latent_is_said(config: ConfigJson, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert says in " ".join(run(str(tmp_path)).split())
