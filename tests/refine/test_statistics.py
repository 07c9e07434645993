"""Statistics are the second moments of what each projection is given, whoever else is given the same."""

import json

import pytest
import torch

from mha2gqa.heads.metric import Full
from mha2gqa.model.architecture import Architecture
from mha2gqa.refine.statistics import gather_statistics
from tests.families.tiny import model_class_name, tiny_config, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "t5gemma", "t5gemma2"])
def test_moments_are_those_of_the_inputs(model_type: str) -> None:
    config = tiny_config(model_type)
    content = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(model_type)]}
    source = Architecture(content)
    layers = source.attention_layers([(count, 1) for count in source.counts])
    model = tiny_model(config)
    seen: dict[str, list[torch.Tensor]] = {}
    for layer in layers:
        for name in {f"{layer.module}.{one}" for one in layer.projections}:
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2).double())
            )
    ids = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    found = gather_statistics(model, layers, [ids, ids + 1], lambda *_: None)
    for layer in layers:
        queries, keys = (torch.cat(seen[f"{layer.module}.{one}"]) for one in layer.projections)
        known = found[layer.module]
        for rows, metric in ((queries, known.query_inputs), (keys, known.inputs)):
            if layer.has_bias:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            total, width = rows.T @ rows, rows.shape[1]
            even = torch.eye(width) * total.trace() / len(keys)
            assert isinstance(metric, Full)
            wanted = (total + even) / (len(keys) + width)
            torch.testing.assert_close(metric.moment_XX, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
