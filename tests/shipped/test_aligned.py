"""`aligned` in shipped classes: what no mean could find is found, in cross-attention too, and both sides are looked at.

The source is a model whose heads are alike within their groups, hidden: each head's keys and values are multiplied
with random invertible matrices, and queries and outputs with what makes up for them.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa import ConvertOptions, convert
from mha2gqa.files.reader import read_json
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.load import load_model
from mha2gqa.refine.statistics import gather_statistics

from .subjects import HEADS, SUBJECTS, WIDTH, averaged
from .test_convert import largest_difference

_NAMES = {
    "t5": ("q", "k", "v", "o"),
    "umt5": ("q", "k", "v", "o"),
    "bart": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "whisper": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "bert": ("self.query", "self.key", "self.value", "output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
}


@pytest.mark.parametrize("model_type", _NAMES)
@torch.no_grad()
def test_hidden_groups_are_found(model_type: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject = next(one for one in SUBJECTS if one.model_type == model_type)
    parts = ("decoder", "cross", "encoder") if subject.seq2seq else ("decoder",)
    oracle = averaged(subject.native(), dict.fromkeys(parts, 2)).double()
    hidden = copy.deepcopy(oracle)
    hide(hidden, _NAMES[model_type])
    hidden.save_pretrained(tmp_path / "source")
    oracle.float()
    assert largest_difference(subject, hidden.float(), oracle) < 1e-5
    for method in ("mean", "aligned"):
        groups = dict.fromkeys(parts, 2) if subject.seq2seq else 2
        convert(ConvertOptions(model=str(tmp_path / "source"), groups=groups, method=method, output=tmp_path / method))
    mean, aligned = (load_model(tmp_path / method, dtype="float64").float() for method in ("mean", "aligned"))
    assert largest_difference(subject, mean, oracle) > 1e-2
    assert largest_difference(subject, aligned, oracle) < 1e-5


@torch.no_grad()
def hide(model: PreTrainedModel, names: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        try:
            query, key, value, output = (module.get_submodule(name) for name in names)
        except AttributeError:
            continue
        for head in range(HEADS):
            rows = slice(head * WIDTH, (head + 1) * WIDTH)
            keys, values = (_invertible(generator) for _ in range(2))
            _multiply(key, rows, keys)
            _multiply(query, rows, torch.linalg.inv(keys).T)
            _multiply(value, rows, values)
            output.weight[:, rows] = output.weight[:, rows] @ torch.linalg.inv(values)


def _multiply(projection: nn.Module, rows: slice, matrix: torch.Tensor) -> None:
    for tensor in (projection.weight, projection.bias):
        if tensor is not None:
            tensor[rows] = matrix @ tensor[rows]


def _invertible(generator: torch.Generator) -> torch.Tensor:
    matrix = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(matrix).Q * (0.6 + torch.rand(WIDTH, generator=generator, dtype=torch.float64))


@torch.no_grad()
def test_statistics_of_cross_attention_are_of_both_sides(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject = next(one for one in SUBJECTS if one.model_type == "t5")
    subject.native().save_pretrained(tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=HEADS, output=tmp_path / "same"))
    content = read_json(tmp_path / "same" / "config.json")
    plan, model = Architecture(content), load_model(tmp_path / "same")
    layers = plan.attention_layers([(count, 2) for count in plan.counts])
    cross = [layer for layer in layers if layer.is_cross]
    assert [layer.module for layer in cross] == [f"decoder.block.{number}.layer.1.EncDecAttention" for number in (0, 1)]
    seen: dict[str, list[torch.Tensor]] = {layer.module: [] for layer in cross}
    for layer in cross:
        attention = model.get_submodule(layer.module)
        attention.register_forward_pre_hook(
            lambda _, args, given, name=layer.module: seen[name].extend([args[0], given["key_value_states"]]),
            with_kwargs=True,
        )
    statistics = gather_statistics(model, cross, [subject.inputs()["input_ids"]], lambda done, total: None)
    for name, (decoder, encoder) in seen.items():
        of_decoder, of_encoder = (
            one.gram(torch.eye(64, dtype=torch.float64))
            for one in (statistics[name].query_inputs, statistics[name].inputs)
        )
        for states, moment in ((decoder, of_decoder), (encoder, of_encoder)):
            rows = states.flatten(0, 1).double()
            expected = rows.T @ rows
            even = torch.eye(64, dtype=torch.float64) * expected.diagonal().sort().values[31]
            expected = (expected + even * (64 / len(rows))) / (len(rows) + 64)
            torch.testing.assert_close(moment, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(of_decoder, of_encoder, rtol=0.1)
