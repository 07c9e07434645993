"""Hosts with everything else: methods that need text, and `verify`, which must prove a result of another class.

What `verify` finds in families with a class of their own is in `tests/verbs/verify`.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mha2gqa import BenchOptions, ConvertOptions, VerifyOptions, bench, convert, verify
from mha2gqa.errors import PairError
from mha2gqa.verbs.verify.outcome import Verification
from tests.hosts.sources import SOURCES, H, build
from tests.hosts.test_native import error, load, logits
from tests.verbs.verify.subjects import flip_bit, save_text, save_tokenizer

NEOX = "gpt_neox parallel"


def save(tmp_path: Path, name: str = NEOX, dtype: torch.dtype = torch.float32) -> Path:
    source = tmp_path / "source"
    build(SOURCES[name], dtype=dtype).save_pretrained(source, max_shard_size="100KB")
    save_tokenizer(source)
    save_text(tmp_path / "text.txt", 2000)
    return source


def converted(source: Path, groups: int, **options: object) -> Path:
    output = source.with_name("out")
    convert(ConvertOptions(model=str(source), groups=groups, output=output, force=True, **options))
    return output


def verified(output: Path, **limits: float) -> Verification:
    text = str(output.with_name("text.txt"))
    return verify(VerifyOptions(converted=output, data=(text,), context=48, **limits))


@pytest.mark.parametrize("name", ["gptj", NEOX, "gpt_neox_japanese", "persimmon", "xglm", "gpt_neo"])
def test_the_same_model_in_another_class_is_verified(name: str, tmp_path: Path) -> None:
    """Each level passes, and each attention module is held against its own counterpart."""
    report = verified(converted(save(tmp_path, name), H))
    assert report.verdict in ("identical", "within limits"), report.reasons
    assert report.conversion.rehosted_from == SOURCES[name].config.model_type
    assert report.file and not report.file.checksummed and not report.findings
    assert report.load
    assert not [check for check in report.load.checks if not check.passed or "not made" in check.detail]
    assert report.outputs
    assert report.outputs.top1 == 1.0
    # The last layer's bias stands outside the attention module of gpt_neox_japanese.
    assert len(report.outputs.layers) == (1 if name == "gpt_neox_japanese" else 2)
    assert max(layer.error for layer in report.outputs.layers) < 1e-5


def test_fewer_heads_are_verified_layer_by_layer(tmp_path: Path) -> None:
    report = verified(converted(save(tmp_path), 4))
    assert report.verdict == "different"
    assert not report.findings or {finding.level for finding in report.findings} == {"outputs"}
    assert report.file
    # Merged: k and v with biases. Computed: q with bias, norm, dense's bias not, fc1, each twice; the head's bias.
    assert (report.file.compared, report.file.recomputed) == (12, 21)
    assert report.load and all(check.passed for check in report.load.checks)
    assert report.outputs and all(0.05 < layer.error < 2 for layer in report.outputs.layers)


@pytest.mark.parametrize("tensor", ["model.layers.0.mlp.fc1.weight", "model.layers.1.self_attn.k_proj.bias"])
def test_a_flipped_bit_of_a_recomputed_tensor_is_found(tensor: str, tmp_path: Path) -> None:
    output = converted(save(tmp_path), 4)
    flip_bit(output, tensor)
    report = verify(VerifyOptions(converted=output, levels=("file",)))
    assert [finding.guilty for finding in report.findings] == [tensor]


def test_an_original_of_other_weights_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path)
    output = converted(source, 4)
    file = next(file for file in source.glob("*.safetensors") if "gpt_neox.embed_in.weight" in load_file(file))
    tensors = load_file(file)
    tensors["gpt_neox.embed_in.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PairError, match="was not made from"):
        verify(VerifyOptions(converted=output, levels=("file",)))


def test_a_changed_config_of_the_host_is_found(tmp_path: Path) -> None:
    output = converted(save(tmp_path), 4)
    config = json.loads((output / "config.json").read_text())
    config["hidden_act"] = "relu"
    (output / "config.json").write_text(json.dumps(config))
    report = verify(VerifyOptions(converted=output, levels=("file",)))
    assert [finding.guilty for finding in report.findings] == ["config.json: hidden_act"]


def test_methods_that_read_text_see_the_host(tmp_path: Path) -> None:
    """Each step must leave less of an error than the one before, on text that was kept aside too."""
    source = save(tmp_path)
    original, errors = logits(build(SOURCES[NEOX])), []
    text = {"data": (str(tmp_path / "text.txt"),), "context": 48}
    for options in ({"method": "mean"}, {"method": "aligned"} | text, {"method": "aligned", "refine": "refit"} | text):
        output = converted(source, 4, **options)
        errors.append(verified(output).outputs.kl.mean)
    assert errors[0] > 2 * errors[1]
    assert errors[1] > errors[2]
    report = verified(output)
    assert report.file and not report.file.findings and report.file.checksummed > 0
    assert set(report.conversion.layer_errors) == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    assert error(logits(load(output)), original) < 1


def test_a_planted_sharing_is_found_again(tmp_path: Path) -> None:
    """Pythia's heads, expanded from shared ones in a hidden basis: `aligned` must bring the model back exactly."""
    source = SOURCES[NEOX]
    model = build(source)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.gpt_neox.layers:
            _plant(layer.attention, generator)
    model.save_pretrained(tmp_path / "source")
    output = converted(tmp_path / "source", H // 2, method="aligned", data=("none",))
    assert error(logits(load(output)), logits(model)) <= 1e-4
    assert error(logits(load(converted(tmp_path / "source", H // 2))), logits(model)) > 1e-2


def _plant(attention: torch.nn.Module, generator: torch.Generator) -> None:
    """Give each pair of heads the same K and V, then each head an own value basis and key scale by plane."""
    weight, bias = attention.query_key_value.weight, attention.query_key_value.bias
    width = weight.shape[1] // H
    heads, offsets = weight.view(H, 3, width, -1), bias.view(H, 3, width)
    heads[1::2, 1:] = heads[::2, 1:]
    offsets[1::2, 1:] = offsets[::2, 1:]
    columns = attention.dense.weight.view(-1, H, width)
    for head in range(H):
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        heads[head, 2], offsets[head, 2] = basis @ heads[head, 2], basis @ offsets[head, 2]
        columns[:, head] = columns[:, head] @ basis.T
        # Rows 0 and 1 are the one rotary plane, the others are free one by one.
        scales = torch.rand(width, generator=generator) + 0.5
        scales[1] = scales[0]
        for tensor in (heads, offsets):
            shape = (-1, *[1] * (tensor.ndim - 3))
            tensor[head, 1] *= scales.view(shape)
            tensor[head, 0] /= scales.view(shape)


def test_bench_holds_the_two_classes_side_by_side(tmp_path: Path) -> None:
    build(SOURCES["gptj"]).save_pretrained(tmp_path / "source")
    output = converted(tmp_path / "source", 2)
    report = bench(BenchOptions(converted=output, batch=(1,), context=(8,), cache=("dynamic",), tokens=2, turns=1))
    assert (report.original.kv_heads, report.converted.kv_heads) == (H, 2)
    assert report.original.cache_per_token == 4 * report.converted.cache_per_token
