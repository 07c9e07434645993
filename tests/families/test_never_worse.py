"""`aligned` is never worse than `mean`, family by family: on random heads, and on heads that are one head in disguise.

Both merges are run inside the original (`conversion.py`), which is held against a conversion on disk.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert

from .cases import CASES, Case
from .conversion import Conversion
from .oracle import load_strict, logits
from .tiny import model_class_name, save_tiny, tiny_config, tiny_model

_CHANCE = 1.15
"""How much worse unrelated random heads may fare by chance, where a family lets only signs or sizes move."""


def conversion_of(case: Case) -> Conversion:
    """To the fewest KV heads."""
    content = json.loads(tiny_config(case.model_type, **case.overrides).to_json_string(use_diff=False))
    return Conversion(content | {"architectures": [model_class_name(case.model_type)]}, min(case.groups))


def errors(case: Case, conversion: Conversion, original: PreTrainedModel, student: PreTrainedModel) -> torch.Tensor:
    """Return the squared errors of the student's logits, of a mean and aligned."""
    wanted, found = logits(original, case), []
    for method in ("mean", "aligned"):
        conversion.merge(original, student, method)
        found.append((logits(student, case) - wanted).square().mean())
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_random_heads_and_on_one_head_in_disguise(case: Case) -> None:
    conversion, config = conversion_of(case), tiny_config(case.model_type, **case.overrides)
    is_free = all(layer.values == "free" for layer in conversion.layers)
    is_all_free = is_free and all(layer.keys == "free" for layer in conversion.layers)
    seeds = (0,) if is_all_free else (0, 1, 2)  # what may go either way by chance is judged by several
    original = tiny_model(config, seeds[-1])
    student = conversion.student(original)
    found = [errors(case, conversion, original, student)]
    for seed in reversed(seeds[:-1]):
        original.load_state_dict(tiny_model(config, seed).state_dict())  # the student shares what no conversion changes
        found.append(errors(case, conversion, original, student))
    mean, moved = sum(found)
    assert moved <= mean * (1.0 if is_free else _CHANCE) or not conversion.layers

    if case.variant != "shared-layers":
        conversion.disguise(original)
        mean, moved = errors(case, conversion, original, student)
        assert moved <= mean + 1e-9
        if all("fixed" not in (layer.keys, layer.values) for layer in conversion.layers):
            assert moved <= 1e-5 * max(1.0, logits(original, case).square().mean().item())


@pytest.mark.parametrize("case", [case for case in CASES if case.groups[-1] < case.source_heads][::8], ids=str)
def test_the_student_is_the_checkpoint(case: Case, tmp_path: Path) -> None:
    original = save_tiny(case.model_type, tmp_path / "source", **case.overrides)
    groups = min(case.groups)
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=groups, output=tmp_path / "mean"))
    on_disk = logits(load_strict(tmp_path / "mean", case), case)
    torch.testing.assert_close(
        logits(conversion_of(case).merged(original, "mean"), case), on_disk, rtol=1e-4, atol=1e-4
    )
