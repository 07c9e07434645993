"""Which host a model gets: one of transformers' own classes where one can express it, else the class that ships."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PreTrainedConfig

from mha2gqa import ConvertOptions, InspectOptions, convert, inspect
from mha2gqa.files.reader import read_json
from mha2gqa.model.load import load_model

GPT2 = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
OPT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2, {2: "gpt2_gqa", 1: "gpt_bigcode"}),
        (OPTConfig(**OPT, word_embed_proj_dim=32), {2: "opt_gqa", 1: "gpt_bigcode"}),
        (OPTConfig(**OPT, word_embed_proj_dim=16), {2: "opt_gqa", 1: "opt_gqa"}),
        (OPTConfig(**OPT, word_embed_proj_dim=32, do_layer_norm_before=False), {2: "opt_gqa", 1: "opt_gqa"}),
    ],
)
def test_a_class_of_transformers_is_preferred(
    config: PreTrainedConfig, expected: dict[int, str], tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    hosts = inspect(InspectOptions(model=str(tmp_path / "source"))).hosts
    assert {groups: hosts[groups] for groups in expected} == expected
    for groups, model_type in expected.items():
        output = tmp_path / str(groups)
        convert(ConvertOptions(model=str(tmp_path / "source"), groups=groups, output=output))
        assert read_json(output / "config.json")["model_type"] == model_type
        assert bool(list(output.glob("modeling_*.py"))) == model_type.endswith("_gqa")


@torch.no_grad()
def test_cross_attention_of_gpt2_stays_as_it_is(tmp_path: Path) -> None:
    config = GPT2Config(**GPT2.to_diff_dict() | {"add_cross_attention": True})
    original = AutoModelForCausalLM.from_config(config).eval()
    original.save_pretrained(tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=4, output=tmp_path / "same"))
    ids, states = torch.arange(12).view(2, 6), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    expected, found = (
        model(input_ids=ids, encoder_hidden_states=states).logits for model in (original, load_model(tmp_path / "same"))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (original(input_ids=ids).logits - expected).abs().max() > 1e-4
