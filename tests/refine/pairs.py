"""Tiny models with their attention layers, and a converted model beside each: what the tests of calibration work on."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.model.architecture import Architecture
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.student import build_student, install, own_tensors
from tests.families.tiny import model_class_name, tiny_config, tiny_model


@dataclass
class Pair:
    """A tiny model, and the same with half of its KV heads, averaged."""

    original: PreTrainedModel
    student: PreTrainedModel
    layers: list[AttentionLayer]


def make_pair(model_type: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Pair:
    config = tiny_config(model_type, **overrides)
    content = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(model_type)]}
    source = Architecture(content)
    targets = [(count, count.heads // 2) for count in source.counts]
    layers = source.attention_layers(targets)
    original = tiny_model(config).to(dtype).requires_grad_(requires_grad=False)
    student = build_student(original, source.with_heads(targets).config, layers)
    merge = LayerMerge(method="mean", grouping="contiguous", seed=0)
    for layer in layers:
        merged = merge(layer, own_tensors(original, layer), None)
        install(student.get_submodule(layer.module), merged.tensors)
    return Pair(original, student, layers)


def token_batches(number: int, length: int = 12) -> list[torch.Tensor]:
    """Batches of two blocks of token ids below the special ones."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 96, (2, length), generator=generator) for _ in range(number)]
