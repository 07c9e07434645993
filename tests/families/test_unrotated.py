"""Layers that do not rotate, in models whose others do, are known; their logits are held in `test_freedom.py`."""

import json

import pytest

from mha2gqa.model.architecture import Architecture

from .tiny import model_class_name, tiny_config

_ALTERNATE = ["sliding_attention", "full_attention"]
CASES = {
    "smollm3": {"no_rope_layers": [1, 0]},
    "cohere2": {"layer_types": _ALTERNATE},
    "cohere2_moe": {"layer_types": _ALTERNATE},
    "llama4_text": {"no_rope_layers": [1, 0]},
}


@pytest.mark.parametrize("model_type", CASES)
def test_one_layer_rotates_and_the_other_is_free(model_type: str) -> None:
    config = tiny_config(model_type, num_hidden_layers=2, **CASES[model_type])
    content = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(model_type)]}
    source = Architecture(content)
    first, second = source.attention_layers([(count, 1) for count in source.counts])
    assert first.rotary.width > 0
    assert first.keys == ("signed" if model_type == "llama4_text" else "free")
    assert (second.rotary.width, second.keys, second.values) == (0, "free", "free")
