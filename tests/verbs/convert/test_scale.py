"""Losses of models that differ from the original in late layers, measured from those layers on, against plain ones."""

import pytest
import torch
from transformers import PreTrainedModel

from mha2gqa.progress import QUIET
from mha2gqa.refine.student import build_student
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.scale import Scale
from tests.refine.pairs import make_pair, token_batches

ATTENTION = "model.layers.1.self_attn"


@pytest.fixture
def original() -> PreTrainedModel:
    return make_pair("mistral", num_hidden_layers=3).original


@pytest.fixture
def scale(original: PreTrainedModel) -> Scale:
    blocks_NT = torch.cat(token_batches(3, 24))
    return Scale(
        ConvertOptions(groups="auto", activation_memory="1KB"), original, blocks_NT, QUIET, 1
    )  # so that some go to disk


def test_losses_behind_a_layer_are_the_whole_models(original: PreTrainedModel, scale: Scale) -> None:
    scale.reach(ATTENTION)
    original.get_parameter(f"{ATTENTION}.v_proj.weight").data.mul_(-2)
    assert scale.behind(original) == scale(original) != 0.0


def test_a_model_around_the_same_weights_begins_there_as_well(original: PreTrainedModel, scale: Scale) -> None:
    config = original.config.__class__(**original.config.to_dict() | {"sliding_window": 4})
    student = build_student(original, config, [])
    scale.reach("model.layers.0.self_attn")
    everywhere = scale.behind(student)
    scale.reach(ATTENTION)
    late, run = scale.behind(student), list[int]()
    for model in (original, student):
        model.get_submodule("model.layers.0.self_attn").register_forward_hook(lambda *_: run.append(0))
    assert scale.behind(student) == late != everywhere, "the first layer sees all tokens"
    assert run == []
    assert scale(student) == everywhere
    assert run == [0]
