"""What is read off a model of its rotary embedding explains the attention of transformers' own class."""

import json
import math

import pytest
import torch

from mha2gqa.families.attention import AttentionLayer, gather
from mha2gqa.heads.attention import Rotary
from mha2gqa.model.architecture import Architecture

from .oracle import input_ids
from .tiny import model_class_name, tiny_config, tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "half": ("llama", {}),
    "half, scaled": ("llama", {"rope_parameters": LLAMA3}),
    "half, partial, biases": ("phi", {}),
    "interleaved": ("cohere", {}),
    "interleaved, partial, biases": ("glm", {}),
    "sinks, YaRN": ("gpt_oss", {"sliding_window": 64}),
    "both ways": ("eurobert", {}),
}
TOKENS = 12


@pytest.mark.parametrize("case", CASES)
def test_scores_by_distance(case: str) -> None:
    model_type, overrides = CASES[case]
    config = tiny_config(model_type, attn_implementation="eager", **overrides)
    content = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(model_type)]}
    source = Architecture(content)
    layer = source.attention_layers([(count, 1) for count in source.counts])[0]
    model = tiny_model(config)
    model.set_attn_implementation("eager")
    module, seen = model.get_submodule(layer.module), []
    module.get_submodule(layer.projections[0]).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        weights = model(input_ids=input_ids(TOKENS), output_attentions=True).attentions[0][0]
        heads = gather(layer, {name: one.detach() for name, one in module.named_parameters()})
    scores = expected_scores(layer, heads.q_HEX, heads.k_KEX, seen[0][0].double()) * module.scaling
    for query in range(1, TOKENS):
        last = TOKENS if layer.rotary.both_ways else query + 1
        found = (weights[:, query, :last] / weights[:, query, :1]).log()
        wanted = scores[:, query, :last] - scores[:, query, :1]
        torch.testing.assert_close(found, (wanted * attention_factor(model) ** 2).float(), rtol=1e-4, atol=1e-5)
    assert weights.triu(1).any() == layer.rotary.both_ways


def attention_factor(model: torch.nn.Module) -> float:
    """What YaRN multiplies queries and keys with, beside turning them."""
    return next((m.attention_scaling for m in model.modules() if hasattr(m, "attention_scaling")), 1.0)


def expected_scores(
    layer: AttentionLayer, q_HEX: torch.Tensor, k_KEX: torch.Tensor, x_TX: torch.Tensor
) -> torch.Tensor:
    if layer.has_bias:
        x_TX = torch.cat([x_TX, x_TX.new_ones(len(x_TX), 1)], dim=1)
    q_HTE, k_KTE = (x_TX @ rows.mT.to(x_TX) for rows in (q_HEX, k_KEX))
    shared = len(q_HTE) // len(k_KTE)
    scores = torch.zeros(len(q_HTE), TOKENS, TOKENS, dtype=x_TX.dtype)
    for head in range(len(q_HTE)):
        for query in range(TOKENS):
            for key in range(TOKENS):
                turned = rotated(k_KTE[head // shared, key], layer.rotary, key - query)
                scores[head, query, key] = q_HTE[head, query] @ turned
    return scores


def rotated(key_E: torch.Tensor, rotary: Rotary, positions: int) -> torch.Tensor:
    turned = key_E.clone()
    for (first, second), frequency in zip(rotary.planes().tolist(), rotary.frequencies, strict=True):
        cosine, sine = math.cos(positions * frequency), math.sin(positions * frequency)
        turned[first] = key_E[first] * cosine - key_E[second] * sine
        turned[second] = key_E[first] * sine + key_E[second] * cosine
    return turned
