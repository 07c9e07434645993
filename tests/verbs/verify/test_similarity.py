"""Similarity of heads against whole tensors, cut into heads by hand, for separate and for fused projections."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mha2gqa.model.load import load_tokenizer
from mha2gqa.record.pair import find_pair
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.run import verify
from mha2gqa.verbs.verify.tensors import head_similarity
from tests.families.tiny import save_tiny
from tests.verbs.verify.subjects import save_text, save_tokenizer

HEADS, WIDTH = 4, 16


def cosines(*tensors: np.ndarray) -> np.ndarray:
    """Cosines between heads, each of which is an equal part of the rows of every tensor."""
    vectors = np.concatenate([tensor.astype(np.float64).reshape(HEADS, -1) for tensor in tensors], axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def test_separate_projections_with_biases(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source", attention_bias=True)
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=2, output=tmp_path / "out"))
    found = head_similarity(find_pair(tmp_path / "out", None))
    weights = load_file(tmp_path / "source/model.safetensors")
    assert [one.module for one in found] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for one in found:
        names = [f"{one.module}.{part}_proj.{kind}" for part in "kv" for kind in ("weight", "bias")]
        assert np.array(one.values) == pytest.approx(cosines(*(weights[name] for name in names)), abs=1e-12)
        assert one.groups == ((0, 1), (2, 3))


def test_fused_projections(tmp_path: Path) -> None:
    save_tiny("phi3", tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=1, output=tmp_path / "out"))
    found = head_similarity(find_pair(tmp_path / "out", None))
    weights = load_file(tmp_path / "source/model.safetensors")
    assert len(found) == 2
    for one in found:
        _, keys, values = np.split(weights[f"{one.module}.qkv_proj.weight"], [HEADS * WIDTH, 2 * HEADS * WIDTH])
        assert np.array(one.values) == pytest.approx(cosines(keys, values), abs=1e-12)
        assert one.groups == ((0, 1, 2, 3),)


def test_nothing_is_known_where_nothing_was_merged(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source", num_key_value_heads=2)
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=2, output=tmp_path / "same"))
    expand(ExpandOptions(model=str(tmp_path / "source"), output=tmp_path / "more"))
    assert head_similarity(find_pair(tmp_path / "same", None)) == ()
    assert head_similarity(find_pair(tmp_path / "more", None)) == ()


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_the_groups_are_those_that_were_used(tmp_path: Path, model_type: str) -> None:
    """Heads 0 and 2 are nearly alike, and so are 1 and 3: neighbours would not be grouped."""
    model = save_tiny(model_type, tmp_path / "source")
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("k_proj", "v_proj", "qkv_proj")):
            heads = parameter.data[-2 * HEADS * WIDTH :].view(-1, HEADS, WIDTH, parameter.shape[1])
            heads[:, 2:] = 1.01 * heads[:, :2]
    model.save_pretrained(tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=2, output=tmp_path / "out", grouping="similar"))
    found = head_similarity(find_pair(tmp_path / "out", None))
    assert [one.groups for one in found] == [((0, 2), (1, 3))] * 2
    assert all(one.values[0][2] > 0.999 > one.values[0][1] for one in found)


def test_groups_that_text_has_chosen_are_believed(tmp_path: Path) -> None:
    """Heads are alike in pairs; in the second layer in other pairs where inputs of this text alone are small."""
    model = save_tiny("llama", tmp_path / "source")
    save_tokenizer(tmp_path / "source")
    file = save_text(tmp_path / "text.txt", 4000)
    known = sorted({*load_tokenizer(tmp_path / "source")(file.read_text()).input_ids})
    model.model.embed_tokens.weight.data[:, 32:] *= 10
    model.model.embed_tokens.weight.data[known, 32:] *= 0.001
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.weight.data[32:] *= 0.01
        layer.mlp.down_proj.weight.data[32:] *= 0.01
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            heads = projection.weight.data.view(HEADS, WIDTH, -1)
            heads[2:] = heads[:2]
            if number:
                heads[:, :, 32:] = 3 * heads[[0, 0, 1, 1], :, 32:]
    model.save_pretrained(tmp_path / "source")
    text = {"data": (str(file),), "context": 32, "tokens": 2048}
    made = {}
    for name, more in (("weights", {}), ("text", text)):
        options = {"model": str(tmp_path / "source"), "groups": 2, "grouping": "similar", "output": tmp_path / name}
        convert(ConvertOptions(**options, **more))
        made[name] = [*dict.fromkeys(find_pair(tmp_path / name, None).conversion.groups.values())]
        assert verify(VerifyOptions(converted=tmp_path / name, levels=("file",))).findings == ()
    assert made == {"weights": [((0, 2), (1, 3)), ((0, 1), (2, 3))], "text": [((0, 2), (1, 3))]}
