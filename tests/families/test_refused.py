"""Families whose attention cannot have fewer KV heads are refused before anything is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mha2gqa.errors import FamilyError
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert

from .cases import REFUSED, WITHOUT_MODEL
from .tiny import save_tiny, tiny_config


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_family_without_kv_heads_to_share_is_refused(model_type: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if model_type in WITHOUT_MODEL:
        tiny_config(model_type).save_pretrained(source)
        save_file({"lm_head.weight": torch.zeros(128, 64)}, source / "model.safetensors", {"format": "pt"})
    else:
        save_tiny(model_type, source)
    before = {path: path.read_bytes() for path in sorted(source.iterdir())}
    with pytest.raises(FamilyError, match=CONFIG_MAPPING[model_type].model_type):
        convert(ConvertOptions(model=str(source), groups=1, output=tmp_path / "converted"))
    assert list(tmp_path.iterdir()) == [source]
    assert {path: path.read_bytes() for path in sorted(source.iterdir())} == before
