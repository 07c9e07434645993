"""The oracle that a mean cannot pass: GQA models in disguise.

A GQA model is expanded to MHA, its heads are shuffled, and every head's keys and values are multiplied with random
numbers that its queries and outputs make up for (`tests/families/gauge.py`). It computes what the GQA model does, and
its heads look unrelated. `aligned` with `similar` grouping has to find the GQA model again.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mha2gqa.families.attention import gather, scatter
from mha2gqa.model.architecture import Architecture
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand
from tests.families.gauge import disguised, shuffled, unmerged
from tests.families.oracle import input_ids
from tests.families.tiny import model_class_name, save_tiny

HEADS, PLANTED = 8, 2
SIMILAR: dict[str, Any] = {"method": "aligned", "grouping": "similar", "data": ("none",)}
CASES = {
    "half": ("llama", {}),
    "half with biases": ("llama", {"attention_bias": True}),
    "half, biases of q, k and v": ("qwen2", {}),
    "half, fused": ("phi3", {}),
    "half, partial, biases": ("phi", {}),
    "half, partial": ("stablelm", {}),
    "interleaved": ("cohere", {}),
    "interleaved with biases": ("cohere", {"attention_bias": True}),
    "interleaved, partial, biases": ("glm", {}),
    "none": ("jamba", {}),
    "none with biases": ("granitemoehybrid", {"attention_bias": True}),
    "soft caps and windows": ("gemma2", {}),
    "global and local layers": ("cohere2", {}),
    "wide heads": ("llama", {"head_dim": 24}),
    "sinks": ("gpt_oss", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_planted_model_is_found_again(case: str, tmp_path: Path) -> None:
    model_type, overrides = CASES[case]
    fields = {"num_attention_heads": HEADS, "num_key_value_heads": PLANTED, "head_dim": 8, **overrides}
    planted, plain = tmp_path / "planted", tmp_path / "expanded"
    save_tiny(model_type, planted, **fields)
    expand(ExpandOptions(model=str(planted), output=plain))
    disguise(plain)
    wanted = logits(planted)
    size = wanted.abs().max().item()
    assert close(logits(plain), wanted, 1e-4), "the disguise must not change the model"
    convert(ConvertOptions(model=str(plain), groups=2 * PLANTED, output=tmp_path / "mean"))
    assert (logits(tmp_path / "mean") - wanted).abs().max() > 0.02 * size, "a mean must ruin it"
    for groups in (PLANTED, 2 * PLANTED):
        found = tmp_path / f"aligned-{groups}"
        convert(ConvertOptions(model=str(plain), groups=groups, output=found, **SIMILAR))
        assert close(logits(found), wanted, 1e-4)


@pytest.mark.parametrize("case", ["half with biases", "interleaved, partial, biases", "none"])
def test_as_many_groups_as_heads_change_nothing(case: str, tmp_path: Path) -> None:
    model_type, overrides = CASES[case]
    source, result = tmp_path / "source", tmp_path / "result"
    save_tiny(model_type, source, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=8, **overrides)
    convert(ConvertOptions(model=str(source), groups=HEADS, output=result, **SIMILAR))
    before, after = (load_file(path / "model.safetensors") for path in (source, result))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def disguise(directory: Path) -> None:
    """Shuffle the heads of a checkpoint and multiply them with random numbers that change nothing."""
    config = json.loads((directory / "config.json").read_text())
    source = Architecture(config)
    generator = torch.Generator().manual_seed(2)
    tensors = load_file(directory / "model.safetensors")
    for layer in source.attention_layers([(count, PLANTED) for count in source.counts]):
        own = {name: tensors[f"{layer.module}.{name}"] for name in layer.shapes}
        whole = unmerged(layer, own)
        moved, groups = shuffled(disguised(gather(whole, own), generator), generator)
        assert layer.sortable
        tensors |= {f"{layer.module}.{name}": one for name, one in scatter(whole, moved, groups, own).items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def logits(directory: Path) -> torch.Tensor:
    model_type = json.loads((directory / "config.json").read_text())["model_type"]
    model = getattr(transformers, model_class_name(model_type)).from_pretrained(directory).eval()
    result: torch.Tensor = model(input_ids=input_ids()).logits.float()
    return result


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return bool((one - other).abs().max() <= tolerance * max(1.0, other.abs().max().item()))
