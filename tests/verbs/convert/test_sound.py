"""Checkpoints that are sound, though not as `save_pretrained` writes them today: taken as they are, and said so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertModel, Wav2Vec2ForCTC
from transformers.integrations import hub_kernels

from mha2gqa.families.blueprint import blueprint, find_spelling
from mha2gqa.files.working import MARK
from mha2gqa.model.load import load_model, load_original
from mha2gqa.model.original import Original
from tests.families.tiny import save_tiny

Cli = Callable[..., Any]
K = "model.layers.1.self_attn.k_proj"
DOWN = "model.layers.0.mlp.down_proj"


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return content


def rename(directory: Path, *pairs: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Write the tensors of a checkpoint under other names, and return them under their own."""
    own = load_file(directory / "model.safetensors")
    renamed = {}
    for name, tensor in own.items():
        for old, new in pairs:
            name = name.replace(old, new)
        renamed[name] = tensor
    assert renamed.keys() != own.keys()
    save_file(renamed, directory / "model.safetensors", {"format": "pt"})
    return own


def retype(directory: Path, dtype: torch.dtype, *names: str) -> None:
    tensors = load_file(directory / "model.safetensors")
    for name in names:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(dtype)
        tensors[f"{name}.weight_scale"] = torch.ones(1)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


# Names that transformers renames


@pytest.mark.parametrize(
    ("model_type", "pairs"),
    [
        ("camembert", [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]),
        ("data2vec-text", [("attention.output.LayerNorm.weight", "attention.output.LayerNorm.gamma")]),
    ],
)
def test_former_names_are_read(model_type: str, pairs: list[tuple[str, str]], tmp_path: Path, cli: Cli) -> None:
    save_tiny(model_type, tmp_path / "now")
    shutil.copytree(tmp_path / "now", tmp_path / "then")
    own = rename(tmp_path / "then", *pairs)
    for name in ("now", "then"):
        answer = cli("convert", name, "-g", 2, "-o", f"{name}-2")
        assert answer.code == 0, answer.err
    now, then = (load_file(tmp_path / f"{name}-2/model.safetensors") for name in ("now", "then"))
    assert now.keys() == then.keys() == own.keys()  # of the class that ships
    assert all(torch.equal(then[name], tensor) for name, tensor in now.items())
    loaded, again = load_model(tmp_path / "now-2"), load_model(tmp_path / "then-2")
    assert all(map(torch.equal, loaded.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("model_class", [HubertModel, Wav2Vec2ForCTC])
def test_former_names_of_weight_norms_are_known(model_class: Any) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    config = json.loads(model_class.config_class(**sizes, num_conv_pos_embedding_groups=4).to_json_string())
    plan = blueprint(config | {"architectures": [model_class.__name__]})
    names = {name.replace("parametrizations.weight.original1", "weight_v") for name in plan.shapes}
    assert names != plan.shapes.keys()
    assert find_spelling(plan, names)(plan).keys() == names


# Kernels that a config names


@pytest.mark.parametrize(
    "keys",
    [
        {"_attn_implementation": "kernels-community/flash-attn3"},
        {"attn_implementation": {"": "flash_attention_3"}, "_attn_implementation_autoset": True},
        {"experts_implementation": "someone/kernels"},
        {"_attn_implementation_internal": "flex_attention"},
    ],
)
def test_a_kernel_is_neither_needed_nor_fetched(
    keys: dict[str, Any], tiny: Any, cli: Cli, tmp_path: Path, monkeypatch: Any
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    for name in ("load_and_register_attn_kernel", "get_kernel"):
        monkeypatch.setattr(hub_kernels, name, fetch, raising=False)
    source = tiny()
    edit(source, **keys)
    assert cli("inspect", source).code == 0
    answer = cli("convert", source, "-g", 2, "-o", "out")
    assert answer.code == 0, answer.err
    assert config_of(tmp_path / "out").items() >= keys.items()
    assert load_model(tmp_path / "out").config._attn_implementation in ("sdpa", "eager")


def test_what_torch_has_is_taken_as_asked_for(tiny: Any) -> None:
    source = tiny()
    edit(source, attn_implementation="eager")
    assert load_model(source).config._attn_implementation == "eager"


# Quantised elsewhere, and not at all


def test_attention_among_quantised_weights_is_converted(tiny: Any, cli: Cli, tmp_path: Path) -> None:
    source = tiny()
    retype(source, torch.float8_e4m3fn, DOWN)
    edit(source, quantization_config={"quant_method": "fp8", "modules_to_not_convert": ["self_attn"]})
    for options in ((), ("--method", "aligned", "--data", "none", "--force")):
        answer = cli("convert", source, "-g", 2, *options, "-o", "out")
        assert answer.code == 0, answer.err
    before, after = (load_file(one / "model.safetensors") for one in (source, tmp_path / "out"))
    assert after[f"{K}.weight"].shape[0] == before[f"{K}.weight"].shape[0] // 2
    assert torch.equal(after[f"{DOWN}.weight"].view(torch.uint8), before[f"{DOWN}.weight"].view(torch.uint8))
    assert config_of(tmp_path / "out")["quantization_config"] == config_of(source)["quantization_config"]


@pytest.mark.parametrize(
    ("command", "packed"),
    [
        (("convert", "-g", 2), K),
        (("convert", "-g", 1), "model.layers.0.self_attn.v_proj"),
        (("convert", "-g", 2, "--method", "aligned", "--data", "none"), "model.layers.1.self_attn.o_proj"),
        (("expand",), K),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_quantised_tensor_that_would_change_is_named(
    tiny: Any, refuse: Any, command: Any, packed: str, dtype: Any
) -> None:
    source = tiny(**({"num_key_value_heads": 2} if command[0] == "expand" else {}))
    retype(source, dtype, packed)
    edit(source, quantization_config={"quant_method": "compressed-tensors"})
    refuse(command[0], source, *command[1:], "-o", "out", says=(packed, "is quantised (compressed-tensors)"))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_config_that_speaks_of_a_former_quantisation(key: str, tiny: Any, cli: Cli, tmp_path: Path) -> None:
    source = tiny()
    edit(source, **{key: {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    answer = cli("convert", source, "-g", 2, "-o", "out")
    assert answer.code == 0, answer.err
    assert f"{key} in config.json: no tensor is quantised" in answer.out
    assert key not in config_of(tmp_path / "out")
    assert load_model(source).dtype == load_model(tmp_path / "out").dtype == torch.float32


# One number at several places


def test_a_text_model_that_is_described_twice(tmp_path: Path, cli: Cli) -> None:
    save_tiny("llava", tmp_path / "source", text_config={"model_type": "llama", "num_key_value_heads": 4})
    config = config_of(tmp_path / "source")
    text = config["text_config"]
    edit(tmp_path / "source", language_config=text, other={"num_key_value_heads": 4, "hidden_size": 1})
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0
    out = config_of(tmp_path / "out")
    assert [out[name]["num_key_value_heads"] for name in ("text_config", "language_config", "other")] == [2, 2, 4]


@pytest.mark.parametrize("number", [2, "4"])
def test_a_number_that_is_said_twice_and_differs_is_none_of_ours(number: Any, tmp_path: Path, cli: Cli) -> None:
    save_tiny("llava", tmp_path / "source", text_config={"model_type": "llama", "num_key_value_heads": 4})
    edit(tmp_path / "source", num_key_value_heads=number)
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0
    out = config_of(tmp_path / "out")
    assert (out["text_config"]["num_key_value_heads"], out["num_key_value_heads"]) == (2, number)


@pytest.mark.parametrize(("model_type", "key"), [("falcon", "num_kv_heads"), ("gpt_bigcode", "num_key_value_heads")])
def test_a_switch_and_the_number_that_it_stands_for(model_type: str, key: str, tmp_path: Path, cli: Cli) -> None:
    save_tiny(model_type, tmp_path / "source", multi_query=False)
    assert cli("convert", "source", "-g", 1, "-o", "one").code == 0
    assert (config_of(tmp_path / "one")["multi_query"], config_of(tmp_path / "one")[key]) == (True, 1)
    assert cli("expand", "one", "-o", "many").code == 0
    many = config_of(tmp_path / "many")
    assert (many["multi_query"], many[key]) == (False, many.get("num_attention_heads") or many.get("n_head"))


# Rotary settings as other programs read them


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_type": "default", "rope_theta": 7e5},
        {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0},
        {"rope_type": "dynamic", "rope_theta": 2e4, "factor": 4.0, "partial_rotary_factor": 1.0},
    ],
)
def test_rotary_settings_stand_in_both_forms(rotary: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny("llama", source, rope_parameters=rotary, num_key_value_heads=4)
    assert "rope_theta" not in config_of(source)
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    out = config_of(tmp_path / "out")
    assert out["rope_theta"] == rotary["rope_theta"]
    assert ("rope_scaling" in out) == (rotary["rope_type"] != "default")
    before, after = blueprint(config_of(source)).config, blueprint(out).config
    assert after.rope_parameters == before.rope_parameters
    assert cli("convert", source, "-g", 4, "-o", "same").code == 0
    assert "rope_theta" not in config_of(tmp_path / "same")


# What loaders stumble over


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": [1]}])
def test_an_index_that_tells_nothing_besides(metadata: dict[str, Any], tiny: Any, cli: Cli, tmp_path: Path) -> None:
    source = tiny(max_shard_size="60KB")
    path = source / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": json.loads(path.read_text())["weight_map"], **metadata}))
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    assert torch.equal(load_model(source).lm_head.weight, load_model(tmp_path / "out").lm_head.weight)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "student."])
def test_a_wrapped_original_is_loaded_as_well(prefix: str, tiny: Any, cli: Cli, tmp_path: Path) -> None:
    source = tiny()
    own = load_file(source / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in own.items()}, source / "model.safetensors", {"format": "pt"})
    answer = cli("convert", source, "-g", 2, "-o", "out")
    assert answer.code == 0, answer.err
    assert "in front of names" in answer.out
    assert load_file(tmp_path / "out/model.safetensors").keys() == own.keys()
    loaded = load_original(Original.at(source)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 3, "do_sample": True},
        {"prompt_lookup_num_tokens": 3},
        {"dola_layers": "high"},
        {"token_healing": True},
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5, "return_dict_in_generate": True},
        {"guidance_scale": 2.0, "cache_implementation": "offloaded", "max_length": 3},
    ],
)
def test_no_setting_of_generation_gets_in_the_way(settings: dict[str, Any], tiny: Any) -> None:
    source = tiny()
    ids = torch.tensor([[1, 5, 9]])
    plain = load_model(source).generate(input_ids=ids, max_new_tokens=4)
    (source / "generation_config.json").write_text(json.dumps(settings))
    assert torch.equal(load_model(source).generate(input_ids=ids, max_new_tokens=4), plain)


@pytest.mark.parametrize("command", ["inspect", "convert", "expand"])
@pytest.mark.parametrize("inner", ["", ".out.partial", "point-gqa2"])
def test_what_a_run_has_left_is_no_checkpoint(command: str, inner: str, tiny: Any, refuse: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny(), tmp_path / ".out.partial" / inner)
    (tmp_path / ".out.partial" / MARK).write_text("")
    options = () if command == "inspect" else ("-o", "out", *(("-g", 2) if command == "convert" else ()))
    refuse(command, f".out.partial/{inner}", *options, says=("is not finished", "its output"))
