"""What the table of freedoms promises of shipped classes holds: random numbers of the allowed kinds change no logit."""

from pathlib import Path

import pytest
import torch

from mha2gqa import ConvertOptions, convert
from mha2gqa.families.attention import gather, scatter
from mha2gqa.files.reader import read_json
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.load import load_model
from tests.families.gauge import disguised, shuffled, unmerged

from .subjects import SUBJECTS, Subject

FIXED = {"deberta", "deberta-v2"}
_ORDERED = {"bloom", "mpt", "t5", "mt5", "umt5"} | FIXED


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@torch.no_grad()
def test_random_numbers_of_the_allowed_kinds_change_nothing(subject: Subject, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    subject.native().save_pretrained(tmp_path / "source")
    convert(ConvertOptions(model=str(tmp_path / "source"), groups=4, output=tmp_path / "same"))
    content = read_json(tmp_path / "same" / "config.json")
    source = Architecture(content)
    layers = source.attention_layers([(count, 2) for count in source.counts])
    modules = 2 * (3 if subject.seq2seq else 1)
    assert len(layers) == (0 if subject.model_type in FIXED else modules)
    model = load_model(tmp_path / "same", dtype="float64")
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in subject.forward_inputs().items()}
    inputs.pop("attention_mask", None)
    expected = model(**inputs).logits
    generator = torch.Generator().manual_seed(1)
    for layer in layers:
        assert (layer.keys, layer.values, layer.sortable) == ("free", "free", subject.model_type not in _ORDERED)
        parameters = dict(model.get_submodule(layer.module).named_parameters())
        tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        whole = unmerged(layer, tensors)
        heads, groups = disguised(gather(whole, tensors), generator), tuple((head,) for head in range(layer.kv_heads))
        if layer.sortable:
            heads, groups = shuffled(heads, generator)
        for name, tensor in scatter(whole, heads, groups, tensors).items():
            parameters[name].copy_(tensor)
        assert not torch.equal(model.get_submodule(layer.module).get_parameter(layer.output), tensors[layer.output])
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-9)
