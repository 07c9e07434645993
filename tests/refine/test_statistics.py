"""Statistics are second moments of what each projection is given; and, for values, of what heads read of it."""

import json

import pytest
import torch
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.metric import Full, Metric
from mha2gqa.model.architecture import Architecture
from mha2gqa.refine import statistics
from mha2gqa.refine.statistics import gather_statistics
from tests.families.tiny import model_class_name, tiny_config, tiny_model

IDS = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def known(model_type: str, **changes: object) -> tuple[PreTrainedModel, list[AttentionLayer]]:
    config = tiny_config(model_type, **changes)
    content = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(model_type)]}
    source = Architecture(content)
    return tiny_model(config), source.attention_layers([(count, 1) for count in source.counts])


def assert_moment(metric: Metric, rows_NX: torch.Tensor, count_N: torch.Tensor, *, has_bias: bool) -> None:
    if has_bias:
        rows_NX = torch.cat([rows_NX, rows_NX.new_ones(len(rows_NX), 1)], dim=1)
    tokens, width = rows_NX.shape
    total = (rows_NX * count_N[:, None]).T @ rows_NX * (tokens / count_N.sum())
    usual = total.diagonal().sort().values[(width - 1) // 2]
    wanted = (total + torch.eye(width) * usual * width / tokens) / (tokens + width)
    assert isinstance(metric, Full)
    torch.testing.assert_close(metric.moment_XX, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "t5gemma"])
def test_tokens_count_by_the_attention_that_they_receive(model_type: str) -> None:
    model, layers = known(model_type)
    seen: dict[str, list[torch.Tensor]] = {}
    before = model.config._attn_implementation
    for layer in layers:
        for name in {f"{layer.module}.{one}" for one in layer.projections}:
            model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2).double())
            )
        model.get_submodule(layer.module).register_forward_hook(
            lambda _, _args, output, name=layer.module: seen.setdefault(name, []).append(output[1].double())
        )
    found = gather_statistics(model, layers, [IDS, IDS + 1], lambda *_: None)
    assert model.config._attn_implementation == before
    for layer in layers:
        queries, keys = (torch.cat(seen[f"{layer.module}.{one}"]) for one in layer.projections)
        weights_BHTT, moments = torch.cat(seen[layer.module]), found[layer.module]
        count_N = torch.stack([one.square().mean(0).sum(0) for one in weights_BHTT]).flatten()
        assert_moment(moments.of_values, keys, count_N, has_bias=layer.has_bias)
        assert_moment(moments.inputs, keys, torch.ones(len(keys)), has_bias=layer.has_bias)
        assert_moment(moments.query_inputs, queries, torch.ones(len(queries)), has_bias=layer.has_bias)
        together_HH = torch.nn.functional.normalize(weights_BHTT.transpose(0, 1).flatten(1), dim=1)
        assert moments.together_HH is not None
        torch.testing.assert_close(moments.together_HH, together_HH @ together_HH.T, rtol=1e-5, atol=1e-6)


def test_where_two_sequences_are_read_at_once_tokens_count_evenly() -> None:
    model, layers = known("t5gemma2")
    keys: list[torch.Tensor] = []
    name = f"{layers[-1].module}.{layers[-1].projections[1]}"
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: keys.append(args[0].flatten(0, -2).double()))
    moments = gather_statistics(model, layers, [IDS], lambda *_: None)[layers[-1].module]
    assert_moment(moments.inputs, torch.cat(keys), torch.ones(2 * IDS.numel()), has_bias=False)


def test_without_attention_weights_tokens_count_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers = known("llama")
    monkeypatch.setattr(model, "set_attn_implementation", lambda _: None)  # as one that computes attention in one way
    moments = gather_statistics(model, layers, [IDS], lambda *_: None)[layers[0].module]
    assert moments.read is moments.together_HH is None and moments.inputs is moments.query_inputs


def test_sequences_go_one_by_one_where_their_weights_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers = known("llama")
    whole = gather_statistics(model, layers, [IDS], lambda *_: None)
    monkeypatch.setattr(statistics, "_WEIGHTS", 1)
    told: list[tuple[int, int]] = []
    parts = gather_statistics(model, layers, [IDS], lambda *one: told.append(one))
    assert told == [(0, 1), (1, 1)]
    one, other = (found[layers[-1].module].read for found in (whole, parts))
    assert isinstance(one, Full) and isinstance(other, Full)
    torch.testing.assert_close(one.moment_XX, other.moment_XX, rtol=1e-5, atol=1e-6)


def test_without_text_there_is_no_moment() -> None:
    model, layers = known("llama")
    with pytest.raises(CalibrationError, match="without ever calling"):
        gather_statistics(model, layers, [], lambda *_: None)
