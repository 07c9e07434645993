"""What is said of families without torch is what transformers says, or nothing is said.

Every case of `cases.py` whose model type has data is asked of both, as it is and with other numbers of KV heads; so is
every model that is written in another class, before and after. The contract tests convert them all by it, besides.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.families import blueprint, outlines
from mha2gqa.families.built import Asked, build
from mha2gqa.families.expected import Blueprint, ConfigJson
from mha2gqa.hosts.choice import hosts_of, objection_to, write_config
from mha2gqa.model.architecture import Architecture
from mha2gqa.verbs.bench.asked import SHAPES
from tests.families.tiny import save_tiny, tiny_config, tiny_model
from tests.hosts.sources import SOURCES
from tests.hosts.sources import build as build_source
from tests.shipped import subjects

from .cases import CASES, Case

TYPES = outlines._types()
SUBJECTS = {str(subject): subject for subject in subjects.SUBJECTS}
ASKED = ("deberta", "deberta-v2", "mpt", "speech_to_text")
"""Models whose configs say more than the data knows."""
HOSTED = ("gpt_neox sequential, part of a head",)
"""Models that become what the data does not know."""
COMMON = """
    llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 olmo olmo2 olmoe starcoder2
    granite cohere cohere2 stablelm glm glm4 smollm3
"""
"""What is converted most often."""


def config_of(model_type: str, **overrides: Any) -> ConfigJson:
    """The config.json of a tiny model."""
    model = tiny_model(tiny_config(model_type, **overrides))
    model.config.architectures = [type(model).__name__]
    content: ConfigJson = json.loads(model.config.to_json_string())
    return content


def asked(config: ConfigJson) -> Blueprint:
    return build(json.dumps(config, sort_keys=True))


def outlined(config: ConfigJson) -> Blueprint | None:
    def refuse() -> Blueprint:
        raise AssertionError("transformers was asked")

    return outlines.outlined(config, refuse)


def facts(plan: Blueprint) -> tuple[Any, ...]:
    """All that a blueprint says; names in the order of the module tree where there is one."""
    named = plan.architecture, plan.prefix, plan.is_base, plan.final_norm, plan.modules
    tensors = dict(plan.shapes), list(plan.module_shapes.items()), list(plan.parameters.items())
    return named, tensors, [plan.attention(module) for module in plan.modules]


def assert_same(config: ConfigJson) -> bool:
    """Hold what is said of a config against transformers; return whether anything is."""
    found = outlined(config)
    if found is None:
        return False
    wanted, data = asked(config), outlines.data_of(config["model_type"])
    assert data is not None
    assert facts(found) == facts(wanted)
    if data["classes"][found.architecture]["filed"] is not None:
        assert found.filed_names() == wanted.filed_names()
    known: Any = found.settings
    for key in (*known.known, *data["absent"], *data["optional"]):
        read = getattr(wanted.config, key, "absent")
        assert getattr(known, key, "absent") == (list(read) if isinstance(read, tuple) else read), key
    return True


def written(config: ConfigJson) -> list[ConfigJson]:
    """What a model becomes in other classes."""
    model = Architecture(config)
    hosts = [one for one in hosts_of(config["model_type"]) if not objection_to(one, model, 1)]
    return [write_config(one, model) for one in hosts]


def source_config(name: str) -> ConfigJson:
    """The config.json of a model whose own class knows only MHA."""
    config = SUBJECTS[name].native().config if name in SUBJECTS else build_source(SOURCES[name]).config
    content: ConfigJson = json.loads(config.to_json_string())
    return content


@pytest.mark.parametrize("case", [case for case in CASES if case.model_type in TYPES], ids=str)
def test_what_is_said_is_what_transformers_says(case: Case) -> None:
    config = config_of(case.model_type, **case.overrides)
    assert_same(config)
    assert_same(config | {"num_key_value_heads": 1})
    assert_same({key: value for key, value in config.items() if key not in ("architectures", "num_key_value_heads")})


@pytest.mark.parametrize("model_type", [name for name in TYPES if '"sliding_window":' in TYPES[name]])
def test_windows_are_said_right(model_type: str) -> None:
    config = {"model_type": model_type, "num_hidden_layers": 5, "vocab_size": 300_000}
    assert_same(config | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2})


@pytest.mark.parametrize("name", [*SUBJECTS, *SOURCES])
def test_what_is_written_in_other_classes_is_said_right(name: str) -> None:
    config = source_config(name)
    if config["model_type"] not in TYPES:
        return
    assert assert_same(config) == (name not in ASKED)
    for one in written(config):
        assert assert_same(one) == (one["model_type"] in TYPES and name not in (*ASKED, *HOSTED))
        assert_same(one | {key: 1 for key in one if key.endswith("key_value_heads")} | {"multi_query": True})


@pytest.mark.parametrize("model_type", COMMON.split())
def test_common_families_are_covered(model_type: str) -> None:
    assert assert_same({"model_type": model_type, "num_hidden_layers": 2, "vocab_size": 300_000})


@pytest.mark.parametrize(
    "change",
    [
        {"no_such_key": 1},
        {"hidden_size": 65},
        {"hidden_size": 64.0},
        {"hidden_size": "64"},
        {"num_hidden_layers": True},
        {"head_dim": 15},
        {"num_key_value_heads": 3},
        {"pad_token_id": 10**6},
        {"eos_token_id": [2, "3"]},
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}},
        {"rope_parameters": {"rope_type": ["default"]}},
        {"rope_scaling": {"type": None}},
        {"rms_norm_eps": float("nan")},
        {"initializer_range": 3},
        {"attention_bias": "yes"},
        {"per_layer_config": {"0": {"num_key_value_heads": 1}}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": "LlamaForCausalLM"},
        {"dtype": "float8_e4m3fn"},
        {"model_type": "no_such_type"},
        {"model_type": ["llama"]},
    ],
    ids=str,
)
def test_what_was_not_tried_is_left_to_transformers(change: ConfigJson) -> None:
    config = config_of("llama")
    assert outlined(config) is not None
    assert outlined(config | change) is None


def test_who_verifies_asks_transformers() -> None:
    config = config_of("llama")
    assert isinstance(blueprint.blueprint(config), outlines.Outlined)
    with blueprint.asking():
        assert isinstance(blueprint.blueprint(config), Asked)
    assert isinstance(blueprint.blueprint(config), outlines.Outlined)


@pytest.mark.parametrize("path", sorted(SHAPES.glob("*.json")), ids=lambda path: path.stem)
def test_published_models_are_covered(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    assert assert_same(config)


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("gpt2", {"n_embd": 65}),
        ("gpt2", {"n_head": 0}),
        ("gpt2", {"hidden_size": 64}),
        ("gpt2", {"n_inner": "64"}),
        ("bert", {"pad_token_id": 100_000}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"add_cross_attention": True}),
        ("bert", {"id2label": {}}),
        ("t5", {"feed_forward_proj": "gated-tanh"}),
        ("t5", {"is_gated_act": True}),
        ("t5", {"is_encoder_decoder": False}),
        ("gpt_neox", {"rotary_pct": 2.0}),
        ("opt", {"word_embed_proj_dim": "64"}),
    ],
    ids=str,
)
def test_what_was_not_tried_of_others_is_left_to_transformers(model_type: str, change: ConfigJson) -> None:
    config = config_of(model_type)
    assert outlined(config) is not None
    assert outlined(config | change) is None


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("gpt2", {"n_ctx": 64, "task_specific_params": {"text-generation": {"do_sample": True}}}),
        ("bert", {"position_embedding_type": "absolute", "gradient_checkpointing": False, "max_length": 3}),
        ("bert", {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}),
        ("t5", {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 1, "tie_word_embeddings": False}),
        ("t5", {"d_model": 66, "decoder_start_token_id": 0}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 100, "rope_parameters": None}),
        ("opt", {"word_embed_proj_dim": 32}),
        ("opt", {"do_layer_norm_before": False, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    ],
    ids=str,
)
def test_what_published_configs_say_is_covered(model_type: str, change: ConfigJson) -> None:
    config = {key: value for key, value in config_of(model_type).items() if key not in ("is_gated_act", "dense_act_fn")}
    assert assert_same(config | change)


def test_another_version_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    outlines._types.cache_clear()
    monkeypatch.setattr(outlines, "version", lambda package: "5.0.0")
    try:
        assert outlined(config_of("llama")) is None
    finally:
        outlines._types.cache_clear()


def test_what_the_data_does_not_say_is_asked() -> None:
    config = config_of("llama")
    found = blueprint.blueprint(config)
    assert isinstance(found, outlines.Outlined)
    assert found.settings.rms_norm_eps == found.config.rms_norm_eps == config["rms_norm_eps"]
    assert type(found.model).__name__ == "LlamaForCausalLM"
    with pytest.raises(AttributeError):
        _ = found.settings.no_such_key


def loaded(words: str, directory: Path) -> str:
    """What is heavy and is loaded by a command."""
    script = f"""
import sys
sys.argv = ["mha2gqa", *{words.split()}]
from mha2gqa.cli import main
try:
    main()
except SystemExit as ending:
    assert not ending.code
print("loaded", *(name for name in ("torch", "transformers", "huggingface_hub", "jinja2") if name in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=directory)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    ["inspect source", "convert source -g 2 -o out", "convert source -g 1 --dry-run --method random"],
)
def test_torch_is_not_loaded_where_nothing_needs_it(words: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    tiny()
    assert loaded(words, tmp_path) == "loaded"


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        *((model_type, "inspect source") for model_type in ("gpt2", "gpt_neox", "opt", "bert", "t5", "falcon")),
        *((model_type, "convert source -g 2 -o out") for model_type in ("bert", "t5", "opt")),
    ],
)
def test_torch_is_not_loaded_for_other_families_either(model_type: str, words: str, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path / "source")
    assert loaded(words, tmp_path) == "loaded"
