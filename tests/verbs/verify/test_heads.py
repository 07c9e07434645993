"""Outputs of task heads are compared as what they are: labels, scores, spans; never as guesses about tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mha2gqa import VerifyOptions, verify
from mha2gqa.model.load import load_tokenizer
from mha2gqa.texts.blocks import pack
from mha2gqa.texts.documents import read_documents
from mha2gqa.verbs.verify.head_level import HeadSums
from mha2gqa.verbs.verify.outcome import Verification
from mha2gqa.verbs.verify.page import verify_page
from mha2gqa.verbs.verify.words import summary
from tests.families.tiny import tiny_config
from tests.verbs.verify.subjects import converted, save_text, save_tokenizer

SUBJECTS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("qwen2", "Qwen2ForTokenClassification", {"num_labels": 5}, "5 labels for each token"),
    ("qwen2", "Qwen2ForTokenClassification", {"num_labels": 200}, "200 labels for each token"),
    ("mistral", "MistralForSequenceClassification", {"num_labels": 3, "pad_token_id": None}, "3 labels for a text"),
    ("gemma", "GemmaForSequenceClassification", {"num_labels": 1, "pad_token_id": 0}, "a score for a text"),
    ("eurobert", "EuroBertForSequenceClassification", {"num_labels": 2}, "2 labels for a text"),
    ("bert", "BertForQuestionAnswering", {}, "where an answer begins and ends"),
)


def save(directory: Path, model_type: str, name: str, **overrides: Any) -> Any:
    torch.manual_seed(0)
    labels = {key: overrides.pop(key) for key in [*overrides] if key in ("num_labels", "problem_type")}
    config = tiny_config(model_type, **overrides)
    for key, value in labels.items():
        setattr(config, key, value)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    save_text(directory.parent / "text.txt", 170)
    return model


def run(directory: Path, name: str, **more: Any) -> Verification:
    text = (str(directory / "text.txt"),)
    return verify(VerifyOptions(converted=directory / name, data=text, context=32, tokens=160, **more))


@pytest.mark.parametrize(("model_type", "name", "overrides", "gives"), SUBJECTS, ids=lambda value: str(value)[:40])
def test_a_head_is_compared_by_its_own_outputs(
    model_type: str, name: str, overrides: dict[str, Any], gives: str, tmp_path: Path
) -> None:
    save(tmp_path / "source", model_type, name, **overrides)
    converted(tmp_path / "source", tmp_path / "same", 4)
    converted(tmp_path / "source", tmp_path / "fewer", 1)
    same, fewer = (run(tmp_path, one, max_kl=1e3, min_top1=0.0, min_cosine=-1.0) for one in ("same", "fewer"))
    assert not fewer.findings, fewer.findings
    assert same.outputs is fewer.outputs is same.embeddings is None
    assert same.head is not None
    assert fewer.head is not None
    assert fewer.head.gives == gives
    # BERT's keys and values become another class's, so that sums of its layers may be taken in another order.
    assert same.head.largest_difference <= (1e-5 if model_type == "bert" else 0)
    assert fewer.head.largest_difference > 1e-4
    assert (fewer.head.kl is None) == ("score" in gives)
    assert fewer.head.layers
    assert all(layer.error > 0 for layer in fewer.head.layers)
    shown = " ".join(str(part) for part in summary(fewer))
    assert gives in shown
    assert "perplexity" not in shown
    assert f"{fewer.head.error:.4g}" in verify_page(fewer)
    assert json.loads(json.dumps(fewer.to_json()))["head"]["gives"] == gives


def test_the_numbers_are_those_of_both_models_run_by_hand(tmp_path: Path) -> None:
    original = save(tmp_path / "source", "qwen2", "Qwen2ForTokenClassification", num_labels=5)
    converted(tmp_path / "source", tmp_path / "fewer", 2)
    other = type(original).from_pretrained(tmp_path / "fewer").eval()
    report = run(tmp_path, "fewer", levels=("outputs",))
    text = [str(tmp_path / "text.txt")]
    ids = pack(read_documents(text, None, "evaluation"), load_tokenizer(tmp_path / "source"), context=32, tokens=160)
    with torch.inference_mode():
        first, second = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (original, other))
    assert report.head is not None
    assert report.head.text.blocks == 5
    divergences = (first.exp() * (first - second)).sum(-1)
    assert report.head.kl == pytest.approx(divergences.mean().item(), rel=1e-4)
    assert report.head.same == (first.argmax(-1) == second.argmax(-1)).double().mean().item()


def test_limits_are_kept_and_passed(tmp_path: Path) -> None:
    save(tmp_path / "source", "mistral", "MistralForSequenceClassification", num_labels=3)
    converted(tmp_path / "source", tmp_path / "fewer", 1)
    strict = run(tmp_path, "fewer", levels=("outputs",), max_kl=0.0, min_top1=0.0)
    assert [finding.guilty for finding in strict.findings] == ["KL divergence"]
    save(tmp_path / "scores", "gemma", "GemmaForSequenceClassification", num_labels=1)
    converted(tmp_path / "scores", tmp_path / "fewer-scores", 1)
    strict = run(tmp_path, "fewer-scores", levels=("outputs",), min_cosine=1.0)
    assert [finding.guilty for finding in strict.findings] == ["error of the scores"]


def test_labels_that_are_decided_alone_are_no_distribution() -> None:
    first, second = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[2.0, 1.0, 3.0]])
    alone, together = HeadSums(), HeadSums()
    alone.add(first, second, each_alone=True)
    together.add(first, second, each_alone=False)
    assert (alone.same, together.same) == (2, 1)
    p, q = torch.sigmoid(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    binary = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.cat(alone.divergences).tolist() == pytest.approx([0, float(binary), 0])
    assert len(torch.cat(together.divergences)) == 1


def test_what_is_neither_labels_nor_tokens_is_not_compared(tmp_path: Path) -> None:
    save(tmp_path / "source", "bert", "BertForMultipleChoice")
    converted(tmp_path / "source", tmp_path / "fewer", 2)
    report = run(tmp_path, "fewer")
    assert report.compared is None
    assert "ForMultipleChoice gives is no distribution of tokens, no labels" in report.reasons[-1]
