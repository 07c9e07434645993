"""What is said of families without torch is what transformers says, or nothing is said.

Every case of `cases.py` whose model type has data is asked of both, as it is and with other numbers of KV heads. The
contract tests convert them all by it, besides.
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
from mha2gqa.verbs.bench.asked import SHAPES
from tests.families.tiny import tiny_config, tiny_model

from .cases import CASES, Case

TYPES = outlines._types()
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
    wanted = asked(config)
    assert facts(found) == facts(wanted)
    data = TYPES[config["model_type"]]
    for key in (*data["known"], *data["absent"], *data["optional"]):
        assert getattr(found.settings, key, "absent") == getattr(wanted.config, key, "absent"), key
    return True


@pytest.mark.parametrize("case", [case for case in CASES if case.model_type in TYPES], ids=str)
def test_what_is_said_is_what_transformers_says(case: Case) -> None:
    config = config_of(case.model_type, **case.overrides)
    assert_same(config)
    assert_same(config | {"num_key_value_heads": 1})
    assert_same({key: value for key, value in config.items() if key not in ("architectures", "num_key_value_heads")})


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
    assert assert_same(config) == (config["model_type"] != "t5")


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


@pytest.mark.parametrize(
    "words",
    ["inspect source", "convert source -g 2 -o out", "convert source -g 1 --dry-run --method random"],
)
def test_torch_is_not_loaded_where_nothing_needs_it(words: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    tiny()
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
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded", result.stdout
