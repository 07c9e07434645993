"""Which models latent attention is refused for, and why: every tiny model of the contract tests is asked."""

from collections.abc import Mapping
from typing import Any

import pytest

from mha2gqa.errors import FamilyError
from mha2gqa.targets.latent.host import LatentSource
from mha2gqa.targets.latent.sources import ROWS, objection
from tests.families.cases import CASES, Case
from tests.families.tiny import tiny_config
from tests.targets.latent.models import architecture

REASONS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "norms per head": ("qwen3", {}, "norms of their own"),
    "soft caps": ("gemma2", {}, "soft caps"),
    "sinks": ("granite_swa", {}, "sinks"),
    "ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}, "ALiBi"),
    "windows": ("mistral", {"sliding_window": 8}, "sliding window"),
    "layers with windows": ("ministral", {}, "sliding window"),
    "a mixture of experts": ("mixtral", {}, "mixture of experts"),
    "no gate": ("arcee", {}, "no gate"),
    "LayerNorm": ("cohere", {}, "subtract the mean"),
    "LayerNorm with biases": ("phi", {}, "norms have biases"),
    "biases of the MLP": ("ernie4_5", {"use_bias": True}, "MLP has biases"),
    "norms behind attention": ("glm4", {}, "norms where the host has none"),
    "state space layers": ("bamba", {}, "not all of its layers are attention"),
    "clipping": ("olmo", {"clip_qkv": 0.5}, "clipped"),
    "learned positions": ("gpt_bigcode", {}, "positions are not rotations"),
    "latent attention": ("deepseek_v3", {}, "latent already"),
    "cross-attention": ("t5gemma", {}, "an encoder and cross-attention"),
    "a masked model": ("bert", {}, "BertLMHeadModel"),
    "pictures": ("llava", {}, "reads other things"),
    "speeds that change": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "other speeds in longer contexts",
    ),
    "queries that grow": ("ministral3", {}, "queries grow"),
    "differences of heads": ("diffllama", {}, "no part of the host"),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_said(name: str) -> None:
    model_type, overrides, says = REASONS[name]
    model = architecture(tiny_config(model_type, **overrides))
    assert says in objection(model)
    with pytest.raises(FamilyError, match=model_type):
        LatentSource.of(model)


@pytest.mark.parametrize("case", [case for case in CASES if case.run == "causal"], ids=str)
def test_only_families_with_a_row_are_taken(case: Case) -> None:
    model = architecture(tiny_config(case.model_type, **case.overrides))
    reason = objection(model)
    assert reason or case.model_type in ROWS
    assert not reason.endswith(".")
