"""What the table of freedoms promises holds in transformers' own classes: random numbers change no logit."""

import json

import pytest
import torch

from mha2gqa.families.attention import gather, scatter
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.kv_heads import possible_groups

from .cases import CASES, Case
from .gauge import disguised, shuffled, unmerged
from .oracle import logits
from .tiny import model_class_name, tiny_config, tiny_model

_UNMOVED = {"blt", "inkling_text", "inkling2_text", "inkling2", "qwen4_exp_text", "qwen4_exp"}
"""Model types whose keys and values are both fixed."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_numbers_of_the_allowed_kinds_change_nothing(case: Case) -> None:
    torch.set_num_threads(1)
    config = tiny_config(case.model_type, **case.overrides)
    content = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(case.model_type)]}
    source = Architecture(content)
    counts = source.counts
    layers = source.attention_layers([(count, min(count.heads, possible_groups(counts)[0])) for count in counts])
    model = tiny_model(config)
    expected = logits(model, case)
    generator = torch.Generator().manual_seed(1)
    moved = False
    for layer in layers:
        parameters = dict(model.get_submodule(layer.module).named_parameters())
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        whole = unmerged(layer, tensors)
        heads = disguised(gather(whole, tensors), generator)
        groups = tuple((head,) for head in range(layer.kv_heads))
        if layer.sortable:
            heads, groups = shuffled(heads, generator)
        result = scatter(whole, heads, groups, tensors)
        moved |= any(not torch.equal(tensor, tensors[name]) for name, tensor in result.items())
        with torch.no_grad():
            for name, tensor in result.items():
                parameters[name].copy_(tensor)
    assert moved == (case.model_type not in _UNMOVED and case.variant != "shared-layers")
    # A norm's epsilon weighs differently against keys of another size.
    torch.testing.assert_close(logits(model, case), expected, rtol=0, atol=5e-4 * max(1.0, expected.abs().max().item()))
