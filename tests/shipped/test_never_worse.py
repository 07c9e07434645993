"""`aligned` is never worse than `mean` in any layer of a shipped class, and finds one head in disguise.

On random heads each layer is held against the original's by itself, on the same inputs: behind several layers of random
weights and one position that is read (ViT), chance can favour either.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mha2gqa import ConvertOptions, convert
from mha2gqa.files.reader import read_json
from mha2gqa.model.load import load_model
from tests.families.conversion import Conversion

from .subjects import HEADS, SUBJECTS, Inputs, Subject
from .test_freedom import FIXED

_FREE = [subject for subject in SUBJECTS if subject.model_type not in FIXED]


@pytest.mark.parametrize("subject", _FREE, ids=str)
@torch.no_grad()
def test_in_every_layer_and_on_one_head_in_disguise(subject: Subject, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject.native().save_pretrained(tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=HEADS, output=tmp_path / "same"))
    model = load_model(tmp_path / "same", dtype="float64")
    conversion = Conversion(read_json(tmp_path / "same" / "config.json"), 2)
    given = subject.forward_inputs()
    given.pop("attention_mask", None)
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in given.items()}

    mean, moved = (layer_errors(conversion, model, method, inputs) for method in ("mean", "aligned"))
    assert len(mean) == len(conversion.layers) > 0
    assert all(moved[name] < mean[name] for name in mean), (mean, moved)

    conversion.disguise(model)
    expected = model(**inputs).logits
    mean_logits, moved_logits = (conversion.merged(model, method)(**inputs).logits for method in ("mean", "aligned"))
    assert (mean_logits - expected).abs().max() > 1e-2
    torch.testing.assert_close(moved_logits, expected, rtol=0, atol=1e-6)


def layer_errors(conversion: Conversion, original: PreTrainedModel, method: str, inputs: Inputs) -> dict[str, float]:
    """Squared error of each converted attention module on what the original's is given."""
    student = conversion.merged(original, method)
    errors: dict[str, float] = {}

    def compare(name: str, args: Any, kwargs: Any, output: Any) -> None:
        answer = student.get_submodule(name)(*args, **kwargs)
        errors[name] = float((answer[0] - output[0]).square().mean())

    handles = [
        original.get_submodule(layer.module).register_forward_hook(
            lambda _, args, kwargs, output, name=layer.module: compare(name, args, kwargs, output), with_kwargs=True
        )
        for layer in conversion.layers
    ]
    extra = {"use_cache": False} if original.can_generate() else {}
    original(**inputs, **extra)
    for handle in handles:
        handle.remove()
    return errors
