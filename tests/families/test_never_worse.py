"""`aligned` is never worse than `mean`, family by family: on random heads, and on heads that are one head in disguise.

Both merges are run inside the original (`calibration.student`), which is held against a conversion on disk.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mha2gqa.calibration.student import build_student, install, own_tensors
from mha2gqa.commands.convert import convert
from mha2gqa.families.attention import AttentionLayer, gather, scatter
from mha2gqa.families.blueprint import blueprint
from mha2gqa.families.counts import find_counts, rewrite
from mha2gqa.families.modules import attention_layers
from mha2gqa.grouping import contiguous
from mha2gqa.heads import AttentionHeads
from mha2gqa.merging.aligned import aligned
from mha2gqa.options import ConvertOptions

from .cases import CASES, Case
from .gauge import disguised, unmerged
from .oracle import load_strict, logits
from .tiny import model_class_name, save_tiny, tiny_config, tiny_model

_CHANCE = 1.15
"""How much worse unrelated random heads may fare by chance, where a family lets only signs or sizes move."""
_SHARED = [case for case in CASES if case.variant != "shared-layers"]


class Conversion:
    """A tiny model of a case, and its conversion to the fewest KV heads."""

    def __init__(self, case: Case) -> None:
        config = tiny_config(case.model_type, **case.overrides)
        content = json.loads(config.to_json_string(use_diff=False))
        content["architectures"] = [model_class_name(case.model_type)]
        source = blueprint(content)
        groups = min(case.groups)
        self.targets = [(count, min(count.heads, groups)) for count in find_counts(content, source)]
        self.layers = attention_layers(content, source, self.targets)
        self.case, self.config, self.groups, self._content = case, config, groups, content

    def merged(self, original: PreTrainedModel, method: str) -> PreTrainedModel:
        student = build_student(original, rewrite(self._content, self.targets), self.layers)
        for layer in self.layers:
            tensors = own_tensors(original, layer)
            groups = contiguous(layer.kv_heads, layer.groups)
            heads = gather(layer, tensors)
            if method == "mean":
                heads = dataclasses.replace(heads, keys="fixed", values="fixed")
            install(student.get_submodule(layer.module), scatter(layer, aligned(heads, groups), groups, tensors))
        return student

    def error(self, original: PreTrainedModel, method: str) -> float:
        difference = logits(self.merged(original, method), self.case) - logits(original, self.case)
        return difference.square().mean().item()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_random_heads(case: Case) -> None:
    conversion = Conversion(case)
    models = [tiny_model(conversion.config, seed) for seed in (0, 1, 2)]
    mean, moved = (sum(conversion.error(model, method) for model in models) for method in ("mean", "aligned"))
    is_free = all(layer.values == "free" for layer in conversion.layers)
    assert moved <= mean * (1.0 if is_free else _CHANCE) or not conversion.layers


@pytest.mark.parametrize("case", _SHARED, ids=str)
def test_on_one_head_in_disguise(case: Case) -> None:
    conversion = Conversion(case)
    model = tiny_model(conversion.config)
    generator = torch.Generator().manual_seed(3)
    for layer in conversion.layers:
        module = model.get_submodule(layer.module)
        tensors = own_tensors(model, layer)
        whole = unmerged(layer, tensors)
        heads = disguised(repeated(gather(whole, tensors), layer), generator)
        same = tuple((head,) for head in range(layer.kv_heads))
        install(module, scatter(whole, heads, same, tensors))
    mean, moved = (conversion.error(model, method) for method in ("mean", "aligned"))
    assert moved <= mean + 1e-9
    if all("fixed" not in (layer.keys, layer.values) for layer in conversion.layers):
        assert moved <= 1e-5 * max(1.0, logits(model, case).square().mean().item())


@pytest.mark.parametrize("case", [case for case in CASES if case.groups[-1] < case.source_heads][::8], ids=str)
def test_the_student_is_the_checkpoint(case: Case, tmp_path: Path) -> None:
    conversion = Conversion(case)
    original = save_tiny(case.model_type, tmp_path / "source", **case.overrides)
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=conversion.groups, output=tmp_path / "mean"))
    on_disk = logits(load_strict(tmp_path / "mean", case), case)
    torch.testing.assert_close(logits(conversion.merged(original, "mean"), case), on_disk, rtol=1e-4, atol=1e-4)


def repeated(heads: AttentionHeads, layer: AttentionLayer) -> AttentionHeads:
    """The first key and value head of each group, in the place of all of its heads."""

    def repeat(heads_KN: Tensor) -> Tensor:
        return (
            heads_KN.unflatten(0, (layer.groups, -1))[:, :1]
            .expand(-1, layer.kv_heads // layer.groups, *[-1] * (heads_KN.dim() - 1))
            .flatten(0, 1)
        )

    gain = None if heads.k_gain_KE is None else repeat(heads.k_gain_KE)
    return dataclasses.replace(heads, k_KEX=repeat(heads.k_KEX), v_KFX=repeat(heads.v_KFX), k_gain_KE=gain)
