"""What a host is made of on disk: 16-bit sources, bare models, names and buffers of old files, tokenizers, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoConfig,
    OPTConfig,
    PersimmonConfig,
    PreTrainedConfig,
)

from mha2gqa import ConvertOptions, ExpandOptions, InspectOptions, convert, expand, inspect
from mha2gqa.errors import CheckpointError, FamilyError, GroupsError, Mha2GqaError
from tests.hosts.sources import SOURCES, VOCABULARY, D, H, build, pooled
from tests.hosts.test_native import IDS, error, load, logits

NEOX = "gpt_neox parallel"


def save(directory: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    build(SOURCES[name], dtype=dtype).save_pretrained(directory)
    return directory


def converted(source: Path, groups: int, name: str = "out") -> Path:
    output = source.with_name(name)
    convert(ConvertOptions(model=str(source), groups=groups, output=output))
    return output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_folded_is_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save(tmp_path / "source", NEOX, dtype)
    before, after = load_file(source / "model.safetensors"), load_file(converted(source, H) / "model.safetensors")
    path = "gpt_neox.layers.1."
    gain, shift = (before[f"{path}input_layernorm.{part}"].double() for part in ("weight", "bias"))
    weight = before[f"{path}attention.query_key_value.weight"].double().view(H, 3, D // H, D)
    bias = before[f"{path}attention.query_key_value.bias"].double().view(H, 3, D // H)
    for part, name in enumerate("qkv"):
        wanted = (weight[:, part] * gain).reshape(D, D).to(dtype)
        assert torch.equal(after[f"model.layers.1.self_attn.{name}_proj.weight"], wanted)
        wanted = (weight[:, part] @ shift + bias[:, part]).reshape(D).to(dtype)
        assert torch.equal(after[f"model.layers.1.self_attn.{name}_proj.bias"], wanted)
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    fc1 = (before[f"{path}mlp.dense_h_to_4h.weight"].double() * before[f"{path}post_attention_layernorm.weight"]).to(
        dtype
    )
    assert torch.equal(after["model.layers.1.mlp.fc1.weight"], fc1)


@pytest.mark.parametrize("name", SOURCES)
def test_a_16_bit_source_stays_what_it_is_to_rounding(name: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", name, torch.bfloat16)
    result = load(converted(source, 1)).float()
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert error(logits(result), logits(pooled(SOURCES[name], original, 1))) <= 0.03


def test_a_model_that_folding_would_overflow_is_refused(tmp_path: Path) -> None:
    model = build(SOURCES[NEOX], dtype=torch.float16)
    model.gpt_neox.layers[0].input_layernorm.weight.data.fill_(300.0)
    model.gpt_neox.layers[0].attention.query_key_value.weight.data.fill_(300.0)
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight.*does not fit into"):
        converted(tmp_path / "source", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_tensors_that_are_only_renamed_are_the_source_s_bytes(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "gptj")
    report = convert(ConvertOptions(model=str(source), groups=2, output=tmp_path / "out"))
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "out"))
    actions = {tensor["name"]: tensor["action"] for tensor in report.tensors}
    assert actions["model.layers.0.mlp.fc1.weight"] == actions["model.layers.0.self_attn.dense.weight"] == "copied"
    assert torch.equal(after["model.layers.0.mlp.fc1.weight"], before["transformer.h.0.mlp.fc_in.weight"])
    assert torch.equal(after["lm_head.bias"], before["lm_head.bias"])
    assert actions["model.layers.0.self_attn.q_proj.weight"] == "recomputed"
    assert actions["model.layers.0.self_attn.k_proj.weight"] == "changed"


def test_buffers_of_old_files_stay_behind_and_names_without_the_new_spelling_are_found(tmp_path: Path) -> None:
    source = save(tmp_path / "source", NEOX)
    tensors = load_file(source / "model.safetensors")
    assert "embed_out.weight" in tensors  # transformers itself calls it lm_head
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    report = convert(ConvertOptions(model=str(source), groups=H, output=tmp_path / "out"))
    dropped = {tensor["name"] for tensor in report.tensors if tensor["action"] == "dropped"}
    assert {"gpt_neox.layers.0.attention.masked_bias", "gpt_neox.layers.0.attention.bias"} <= dropped
    assert error(logits(load(tmp_path / "out")), logits(build(SOURCES[NEOX]))) <= 1e-5


@pytest.mark.parametrize("name", ["gptj", NEOX, "gpt_neox sequential", "gpt2"])
@torch.no_grad()
def test_a_bare_model_becomes_a_bare_model(name: str, tmp_path: Path) -> None:
    original = build(SOURCES[name]).base_model
    original.save_pretrained(tmp_path / "source")
    result, info = AutoModel.from_pretrained(converted(tmp_path / "source", H), output_loading_info=True)
    assert not any(info.values()), info
    assert error(result.eval()(IDS).last_hidden_state, original(IDS).last_hidden_state) <= 1e-5


def test_a_file_without_the_base_model_s_prefix_is_read(tmp_path: Path) -> None:
    """As GPT-2 itself lies on the Hub: the class has a head, the names have no prefix."""
    source = save(tmp_path / "source", "gpt2")
    tensors = load_file(source / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(short, source / "model.safetensors", {"format": "pt"})
    assert error(logits(load(converted(source, H))), logits(build(SOURCES["gpt2"]))) <= 1e-5


def test_a_head_that_a_tied_file_holds_all_the_same_is_kept(tmp_path: Path) -> None:
    """Old OPT files have it; where it differs from the embedding, transformers does not tie the two."""
    source = save(tmp_path / "source", "opt")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"] * 2
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    original = AutoModelForCausalLM.from_pretrained(source).eval()
    assert error(logits(load(converted(source, H))), logits(original)) <= 1e-5


@pytest.mark.parametrize("name", ["gpt2", "opt", "biogpt unscaled", "gpt_neox parallel, tied, no biases"])
def test_a_tied_head_is_not_written_twice(name: str, tmp_path: Path) -> None:
    output = converted(save(tmp_path / "source", name), 1)
    assert "lm_head.weight" not in load_file(output / "model.safetensors")
    assert json.loads((output / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(("name", "settings"), [("gpt2", {}), ("opt", {"add_bos_token": True}), ("gptj", {})])
def test_a_tokenizer_of_old_files_is_found_under_the_other_model_type(
    name: str, settings: dict[str, object], tmp_path: Path
) -> None:
    source = save(tmp_path / "source", name)
    (source / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<|endoftext|>": 2, "ab": 3}))
    (source / "merges.txt").write_text("#version: 0.2\na b\n")
    if settings:
        (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **settings}))
    output = converted(source, 1)
    assert json.loads((output / "config.json").read_text())["tokenizer_class"] == "GPT2Tokenizer"
    ids = AutoTokenizer.from_pretrained(output)("abba").input_ids
    assert ids == AutoTokenizer.from_pretrained(source)("abba").input_ids
    assert ids[-3:] == [3, 1, 0]
    assert (len(ids) == 4) == bool(settings)


def test_the_result_can_be_expanded_again(tmp_path: Path) -> None:
    output = converted(save(tmp_path / "source", NEOX), 2)
    expand(ExpandOptions(model=str(output), output=tmp_path / "wide"))
    assert error(logits(load(tmp_path / "wide")), logits(load(output))) <= 1e-5


def test_inspect_says_which_class_the_result_has(tmp_path: Path) -> None:
    report = inspect(InspectOptions(model=str(save(tmp_path / "gptj", "gptj"))))
    assert (report.model_type, report.architecture, report.kv_heads) == ("gptj", "GPTJForCausalLM", H)
    assert report.hosts == dict.fromkeys((8, 4, 2, 1), "phi")
    assert report.parameters == sum(parameter.numel() for parameter in build(SOURCES["gptj"]).parameters())
    assert "so the result is a 'phi' model" in report.verdict
    report = inspect(InspectOptions(model=str(save(tmp_path / "gpt2", "gpt2"))))
    assert [row.groups for row in report.rows] == [*report.hosts] and report.hosts[1] == "gpt_bigcode"


WINDOWED = GPTNeoConfig(
    vocab_size=VOCABULARY, hidden_size=D, num_layers=2, num_heads=H, attention_types=[[["global", "local"], 1]]
)
NARROW = {"vocab_size": VOCABULARY, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H}
REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "windows": (WINDOWED, "window of tokens"),
    "post-norm": (OPTConfig(**NARROW, ffn_dim=D, word_embed_proj_dim=D, do_layer_norm_before=False), "LayerNorms"),
    "projected": (OPTConfig(**NARROW, ffn_dim=D, word_embed_proj_dim=D // 2), "projected"),
    "key norms": (PersimmonConfig(**NARROW, intermediate_size=D), "qk_layernorm"),
    "cross-attention": (
        GPT2Config(vocab_size=VOCABULARY, n_embd=D, n_layer=1, n_head=H, add_cross_attention=True),
        "cross-attention",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_host_can_express_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    with pytest.raises(FamilyError, match=f"{config.model_type}.*{reason}"):
        converted(tmp_path / "source", 1)
    report = inspect(InspectOptions(model=str(tmp_path / "source")))
    assert not report.convertible and reason in report.verdict


@pytest.mark.parametrize(
    ("name", "groups", "says"),
    [
        ("gpt2", 2, "one KV head or 8, not 2.*Expected one of 1, 8"),
        ("gptj", 3, "Expected one of 1, 2, 4, 8"),
        ("gptj", 16, "more than its 8 KV heads"),
    ],
)
def test_a_number_of_groups_that_the_host_cannot_have_is_refused(
    name: str, groups: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(GroupsError, match=says):
        converted(save(tmp_path / "source", name), groups)


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "quantised", "head"])
def test_damaged_sources_are_refused(damage: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", NEOX)
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    elif damage == "nan":
        tensors[name][0, 0] = torch.nan
    elif damage == "quantised":
        config["quantization_config"] = {"quant_method": "fp8"}
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    else:
        config["architectures"] = ["GPTNeoXForSequenceClassification"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text(json.dumps(config))
    says = {"quantised": "quantised", "head": "no class like GPTNeoXForSequenceClassification"}.get(damage, name)
    with pytest.raises(Mha2GqaError, match=says):
        converted(source, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
