"""A new family is one row of the table: the tests' own, a copy of a family of transformers under another name."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, Phi3Config, Phi3ForCausalLM

from mha2gqa import ConvertOptions, convert
from mha2gqa.errors import FamilyError
from mha2gqa.families.layouts import fused
from mha2gqa.families.row import Family, Freedoms, TensorRule
from mha2gqa.families.table import TABLE
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.run import verify
from tests.verbs.verify.subjects import save_source

ROW = Family(
    counts=("kv_groups",),
    tensors={r"qkv_proj\.weight": TensorRule(fused)},
    freedom=Freedoms(),
)
WAYS = {
    "mean": {"method": "mean"},
    "similar": {"method": "aligned", "grouping": "similar", "data": ("none",)},
}


class ToyConfig(Phi3Config):
    model_type = "toy"
    attribute_map = Phi3Config.attribute_map | {"kv_groups": "num_key_value_heads"}


class ToyForCausalLM(Phi3ForCausalLM):
    config_class = ToyConfig


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint of a family that no table knows, though transformers does; fused, with a count of its own name."""
    AutoConfig.register("toy", ToyConfig)
    monkeypatch.setattr(transformers, "ToyForCausalLM", ToyForCausalLM, raising=False)
    source = save_source(tmp_path / "toy", "phi3", num_attention_heads=8, num_key_value_heads=8, head_dim=8)
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "toy", "architectures": ["ToyForCausalLM"], "kv_groups": config.pop("num_key_value_heads")}
    (source / "config.json").write_text(json.dumps(config))
    yield source
    del transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content["toy"]


def test_without_a_row_it_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=r"qkv_proj\.weight' of a 'toy' model depends on"):
        convert(ConvertOptions(model=str(toy), groups=2, output=tmp_path / "out"))


@pytest.mark.parametrize("way", WAYS)
def test_with_a_row_it_is_converted_as_what_it_is_a_copy_of(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setitem(TABLE, "toy", ROW)
    twin = save_source(tmp_path / "twin", "phi3", num_attention_heads=8, num_key_value_heads=8, head_dim=8)
    for source in (toy, twin):
        convert(ConvertOptions(model=str(source), groups=2, output=tmp_path / f"{source.name}-2", **WAYS[way]))
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("toy-2", "twin-2"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    config = json.loads((tmp_path / "toy-2/config.json").read_text())
    assert (config["kv_groups"], "num_key_value_heads" in config) == (2, False)
    record = json.loads((tmp_path / "toy-2/mha2gqa.json").read_text())
    assert all((layer["keys"], layer["values"]) == ("free", "free") for layer in record["layers"])
    report = verify(VerifyOptions(converted=tmp_path / "toy-2", levels=("file", "load")))
    assert report.file is not None
    assert not report.findings
    assert (report.file.recomputed, report.file.checksummed) == (2 if way == "mean" else 4, 0)
