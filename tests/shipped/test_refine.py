"""Refitting helps every layer of shipped classes, whatever their modules do behind the output projection."""

from pathlib import Path

import pytest
import torch

from mha2gqa import ConvertOptions, convert
from mha2gqa.model.layers import LayerFiles
from mha2gqa.model.load import load_model
from mha2gqa.model.original import Original
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.plan import make_plan
from mha2gqa.verbs.convert.layerwise import Layerwise
from tests.told import Told

from .subjects import HEADS, SUBJECTS, VOCABULARY

_TEXT = {one.model_type: one for one in SUBJECTS if set(one.inputs()) == {"input_ids", "attention_mask"}}
_TYPES = ("gpt2", "bloom", "bert", "roberta-prelayernorm", "distilbert", "t5", "bart")


@pytest.mark.parametrize("model_type", _TYPES)
def test_refit_helps_every_layer(model_type: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    _TEXT[model_type].native().save_pretrained(tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=HEADS, output=tmp_path / "same"))
    original = Original.at(tmp_path / "same")
    plan = make_plan(original, KvHeads(2))
    told = Told()
    layerwise = Layerwise(
        files=LayerFiles(plan.original, tmp_path),
        plan=plan,
        merge=LayerMerge(method="mean", grouping="contiguous", seed=0),
        progress=told,
        device=torch.device("cpu"),
    )
    model = load_model(tmp_path / "same").requires_grad_(requires_grad=False)
    ids = torch.randint(3, VOCABULARY, (64, 24), generator=torch.Generator().manual_seed(0))
    layerwise.refined(model, ids, "refit", Descent(steps=1), Activations(1 << 30, tmp_path))
    assert len(told.layers) == len(layerwise.layers) > 0
    for module, errors in told.layers:
        assert errors["refit"] < 0.9 * errors["merged"], module
