"""What is known of a class without running it: each kind of model, and what may be asked of it."""

from typing import Any

import pytest
import torch
import transformers

from mha2gqa.model.kind import Head, Kind, kind_of
from tests.families.tiny import model_class_name, tiny_config

NEXT: dict[str, Any] = {"decodes": True, "predicts_next_token": True, "continues_text": True, "gives_embeddings": False}
NOTHING = dict.fromkeys(NEXT, False)
CASES: tuple[tuple[str, str, dict[str, Any], Head, dict[str, Any]], ...] = (
    ("llama", "", {}, "next token", NEXT),
    ("t5gemma", "", {}, "next token", NEXT | {"continues_text": False, "has_encoder": True}),
    ("bart", "BartForConditionalGeneration", {}, "next token", NEXT | {"continues_text": False, "has_encoder": True}),
    ("t5", "T5Model", {}, "none", NOTHING | {"decodes": True, "has_encoder": True}),
    ("eurobert", "", {}, "masked token", NOTHING),
    ("bert", "BertForMaskedLM", {}, "masked token", NOTHING),
    ("bert", "BertModel", {}, "none", NOTHING | {"gives_embeddings": True}),
    ("llama", "LlamaModel", {}, "none", NOTHING | {"gives_embeddings": True}),
    ("llama4", "Llama4ForConditionalGeneration", {}, "next token", NEXT),
    ("bert", "BertLMHeadModel", {"is_decoder": True}, "next token", NEXT),
    ("bert", "BertLMHeadModel", {"is_decoder": False}, "next token", NEXT | {"predicts_next_token": False}),
)
"""Model type, class (empty: the family's language model), config, head, and what else holds of it."""


def kind(model_type: str, name: str, **overrides: Any) -> Kind:
    with torch.device("meta"):
        return kind_of(
            getattr(transformers, name or model_class_name(model_type))(tiny_config(model_type, **overrides))
        )


@pytest.mark.parametrize(("model_type", "name", "overrides", "head", "more"), CASES, ids=lambda value: str(value)[:30])
def test_kinds_are_told_by_the_class(
    model_type: str, name: str, overrides: dict[str, Any], head: Head, more: dict[str, Any]
) -> None:
    found = kind(model_type, name, **overrides)
    assert found.name == (name or model_class_name(model_type))
    assert found.head == head
    assert found.reads_tokens
    assert {key: getattr(found, key) for key in more} == more
    assert found.sees_ahead == (overrides.get("is_decoder") is False)


def test_who_answers_text_with_text() -> None:
    assert kind("t5gemma", "").answers_text_with_text
    assert kind("t5", "T5ForConditionalGeneration").answers_text_with_text
    assert not kind("llama", "").answers_text_with_text
    assert not kind("t5", "T5Model").answers_text_with_text


def test_what_reads_no_tokens() -> None:
    speech = kind("canary", "")
    assert (speech.reads, speech.reads_tokens) == ("input_features", False)
    assert not speech.answers_text_with_text
