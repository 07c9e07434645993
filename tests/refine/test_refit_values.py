"""Refitted values and outputs of real modules, measured by running them."""

from pathlib import Path

import pytest
import torch

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.merge import LayerMerge, Merged
from mha2gqa.refine.refit import refit
from mha2gqa.refine.refit_values import refit_values
from mha2gqa.refine.replay import Example, Replay
from mha2gqa.refine.student import install, own_tensors
from tests.refine.pairs import make_pair, token_batches

CPU = torch.device("cpu")
TYPES = ["llama", "qwen2", "phi3", "gpt_oss", "cohere", "t5gemma"]
"""Plain; biases; fused; sinks; interleaved rotary planes; an encoder, and a decoder that also reads across."""


def calls(model_type: str, tmp_path: Path) -> list[tuple[torch.nn.Module, AttentionLayer, Merged, list[Example]]]:
    """A converted module of each kind of layer, its merge, and what is wanted of it."""
    dtype = torch.float32 if model_type == "gpt_oss" else torch.float64  # torch's grouped products know no fp64
    pair = make_pair(model_type, dtype)
    memory = Activations(10**9, tmp_path)
    runs = [Replay(model, token_batches(8, 32), memory) for model in (pair.student, pair.original)]
    found = []
    for layer in [one for one in pair.layers if one.values == "free"]:
        examples = list(zip(runs[0].calls(layer.module), runs[1].outputs(layer.module), strict=True))
        merge = LayerMerge(method="aligned", grouping="contiguous", seed=0)
        merged = merge(layer, own_tensors(pair.original, layer), None)
        module = pair.student.get_submodule(layer.module)
        install(module, merged.tensors)
        found.append((module, layer, merged, examples))
    assert found
    return found


def error(module: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    return torch.stack([(call.run(module, CPU) - wanted).square().sum() for call, wanted in examples]).sum()


@pytest.mark.parametrize("model_type", TYPES)
def test_values_and_outputs_do_better_than_outputs_alone(model_type: str, tmp_path: Path) -> None:
    for module, layer, merged, examples in calls(model_type, tmp_path):
        output = layer.output.removesuffix(".weight")
        refit(module, output, examples, examples, CPU)
        outputs_alone = error(module, examples).item()
        install(module, merged.tensors)
        refit_values(module, output, examples, examples, CPU, merged)
        assert error(module, examples).item() < 0.99 * outputs_alone


def test_values_that_are_cut_short_still_begin_at_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no more rows than values, the mixture is what the merge made, turned, and the outputs alone are refitted."""
    monkeypatch.setattr("mha2gqa.refine.refit_values._LEAST", 1)
    monkeypatch.setattr("mha2gqa.refine.refit_values._MOST", 1)
    for module, layer, merged, examples in calls("llama", tmp_path):
        output = layer.output.removesuffix(".weight")
        refit(module, output, examples, examples, CPU)
        outputs_alone = error(module, examples).item()
        install(module, merged.tensors)
        refit_values(module, output, examples, examples, CPU, merged)
        assert error(module, examples).item() == pytest.approx(outputs_alone, rel=1e-3)


def test_outputs_are_fitted_to_all_tokens_where_values_are_found_with_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mha2gqa.refine.refit_values._TOKENS", 100)  # of 8 batches of 64
    monkeypatch.setattr("mha2gqa.refine.refit_values._PRODUCTS", 0)
    for module, layer, merged, examples in calls("llama", tmp_path):
        output = layer.output.removesuffix(".weight")
        refit_values(module, output, examples[:2], examples, CPU, merged)
        few = {name: module.get_parameter(name).clone() for name in layer.changed}
        install(module, merged.tensors)
        refit_values(module, output, examples, examples, CPU, merged)
        for name in layer.changed:
            assert torch.equal(module.get_parameter(name), few[name]) == (name != layer.output)
        found = module.get_parameter(layer.output).clone()
        refit(module, output, examples, examples, CPU)
        left, alike = few[layer.output] - found, module.get_parameter(layer.output) - found
        assert alike.norm() < 0.1 * left.norm(), "held to what was found, not to the merge: hardly another fit"
