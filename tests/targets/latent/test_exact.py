"""Where the cache is wide enough nothing is lost: the host gives the logits of transformers' own class.

Every family with a row in `sources.py` is held, biases and multipliers included, MHA and GQA; so is what the host's
class makes of its files: strict load, a cache of C + R numbers, generation with and without it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3ForCausalLM, DynamicCache, PreTrainedModel

from mha2gqa.targets.latent.sources import ROWS
from tests.families.oracle import input_ids
from tests.families.tiny import tiny_config, tiny_model
from tests.targets.latent.models import fitted_host, whole_host

FULL = {"layer_types": ["full_attention"] * 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, GQA": ("llama", {"num_key_value_heads": 2}),
    "llama, MQA": ("llama", {"num_key_value_heads": 1}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, large eps": ("llama", {"rms_norm_eps": 1e-2}),
    "llama, tied, large eps": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 24}),
    "llama, scaled speeds": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": None, "num_key_value_heads": 2}),
    "ministral": ("ministral", FULL),
    "cwm": ("cwm", {**FULL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "qwen2: biases of q, k and v": ("qwen2", {}),
    "qwen2, GQA": ("qwen2", {"num_key_value_heads": 2}),
    "seed_oss": ("seed_oss", {}),
    "phi3: fused": ("phi3", {}),
    "phi3: fused, GQA": ("phi3", {"num_key_value_heads": 2}),
    "glm: fused, partial, interleaved, biases": ("glm", {}),
    "glm, no biases": ("glm", {"attention_bias": False}),
    "helium: interleaved": ("helium", {}),
    "helium: biases but not of the output": ("helium", {"attention_bias": True}),
    "ernie4_5: interleaved, tied": ("ernie4_5", {}),
    "internlm3": ("internlm3", {}),
    "iquestcoder": ("iquestcoder", {}),
    "smollm3: layers without rotation, tied": ("smollm3", {}),
    "gemma: gains from 1 on, scaled embeddings, tied": ("gemma", {}),
    "gemma, MQA": ("gemma", {"num_key_value_heads": 1}),
    "granite: multipliers": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "granite: multipliers, tied": ("granite", {"embedding_multiplier": 3.0, "tie_word_embeddings": True}),
    "olmo: norms that subtract the mean": ("olmo", {}),
    "olmo, biases, tied": ("olmo", {"attention_bias": True, "tie_word_embeddings": True}),
}


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=input_ids()).logits
    return found


def test_every_row_is_held() -> None:
    assert {model_type for model_type, _ in CASES.values()} | {"hyperclovax"} == ROWS.keys()


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost(case: str) -> None:
    model_type, overrides = CASES[case]
    model = tiny_model(tiny_config(model_type, **overrides))
    wanted = logits(model)
    found = logits(fitted_host(model, whole_host(model)))
    assert (found - wanted).abs().max() < 1e-4
    assert wanted.abs().max() > 1


@pytest.mark.parametrize("case", ["llama, GQA", "llama, tied, large eps", "qwen2: biases of q, k and v", "gemma, MQA"])
def test_the_host_is_what_transformers_loads(case: str, tmp_path: Path) -> None:
    model_type, overrides = CASES[case]
    model = tiny_model(tiny_config(model_type, **overrides))
    host = whole_host(model)
    student = fitted_host(model, host)
    student.save_pretrained(tmp_path)
    loaded, info = DeepseekV3ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert (logits(loaded.eval()) - logits(model)).abs().max() < 1e-4
    cache = DynamicCache(config=loaded.config)
    with torch.no_grad():
        loaded(input_ids=input_ids(), past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        states = (layer.keys, layer.values)
        assert all(state.shape[1] == 1 for state in states)
        assert sum(state.shape[-1] for state in states) == host.latent + host.key.width


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["llama, GQA", "llama, tied, large eps", "qwen2: biases of q, k and v"])
def test_16_bits_lose_what_16_bits_lose(case: str, dtype: torch.dtype) -> None:
    model_type, overrides = CASES[case]
    model = tiny_model(tiny_config(model_type, **overrides)).to(dtype)
    student = fitted_host(model, whole_host(model))
    own, found = (logits(one).float() for one in (model, student))
    exact = logits(model.float())
    own_error, error = (float((one - exact).square().mean().sqrt()) for one in (own, found))
    assert error < 3 * own_error


def test_generation_is_the_same_with_and_without_a_cache() -> None:
    model = tiny_model(tiny_config("llama", num_key_value_heads=2))
    student = fitted_host(model, whole_host(model))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = model.generate(input_ids(), **options)
    for use_cache in (True, False):
        assert torch.equal(student.generate(input_ids(), use_cache=use_cache, **options), wanted)
