"""Every kind of model that runs on text alone can be refined: a step or two on tiny models, and the result loads."""

from pathlib import Path

import pytest
import torch

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

from .cases import CASES, Case
from .tiny import save_tiny

_ALWAYS = ("zamba", "gemma3n_text", "stablelm-qk-norm", "doge", "phi3", "falcon-alibi", "t5gemma", "eurobert", "molmo2")
_SAMPLE = [
    case
    for number, case in enumerate(CASES)
    if case.run in ("causal", "masked", "seq2seq") and (number % 12 == 0 or str(case) in _ALWAYS)
]


@pytest.mark.parametrize("case", _SAMPLE, ids=str)
def test_each_kind_can_be_refined(case: Case, tmp_path: Path) -> None:
    save_tiny(case.model_type, tmp_path / "source", **case.overrides)
    model = load_model(tmp_path / "source").requires_grad_(requires_grad=False)
    original = Original.at(tmp_path / "source")
    groups = min(case.groups)
    plan = make_plan(original, KvHeads(groups))
    told = Told()
    layerwise = Layerwise(
        files=LayerFiles(plan.original, tmp_path),
        plan=plan,
        merge=LayerMerge(method="aligned", grouping="contiguous", seed=0),
        progress=told,
        device=torch.device("cpu"),
    )
    ids = torch.randint(3, 96, (16, 8), generator=torch.Generator().manual_seed(0))
    done = layerwise.refined(model, ids, "distil", Descent(steps=2), Activations(1 << 30, tmp_path))
    assert [module for module, _ in told.layers] == [layer.module for layer in layerwise.layers]
    assert told.counts == [(number + 1, len(told.layers)) for number in range(len(told.layers))]
    for _, errors in told.layers:
        assert [*errors.values()] == sorted(errors.values(), reverse=True), "a step must not make a layer worse"
    changed = {tensor.name for tensor in plan.with_layers(done.results()).changed}
    assert changed >= {info.name for result in done.results() for info in result.tensors}
