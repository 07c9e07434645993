"""Models without a head: their embeddings are compared, by cosine, through every level, summary, JSON and page."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertModel, DistilBertModel, EuroBertModel, PreTrainedModel

from mha2gqa import VerifyOptions, verify
from mha2gqa.errors import TextError
from mha2gqa.model.load import load_tokenizer
from mha2gqa.sections import Section
from mha2gqa.texts.blocks import pack
from mha2gqa.texts.documents import read_documents
from mha2gqa.verbs.verify.embeddings_level import CosineSums, cosine
from mha2gqa.verbs.verify.outcome import Verification
from mha2gqa.verbs.verify.page import verify_page
from mha2gqa.verbs.verify.words import summary
from tests.families.tiny import tiny_config
from tests.verbs.verify.subjects import converted, save_text, save_tokenizer

CLASSES = {"bert": BertModel, "distilbert": DistilBertModel, "eurobert": EuroBertModel}


def save_encoder(directory: Path, model_type: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = CLASSES[model_type](tiny_config(model_type)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return model


def run(directory: Path, name: str, **more: float) -> Verification:
    text = (str(directory / "text.txt"),)
    return verify(VerifyOptions(converted=directory / name, data=text, context=32, tokens=160, **more))


def by_hand(one: torch.Tensor, other: torch.Tensor) -> float:
    first, second = one.double().tolist(), other.double().tolist()
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return float(dot / (sum(a * a for a in first) * sum(b * b for b in second)) ** 0.5)


def test_cosines_are_those_of_a_loop_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 5, 7, generator=generator) for _ in range(2))
    sums = CosineSums()
    sums.add(one[:2], other[:2])
    sums.add(one[2:], other[2:])
    blocks = [by_hand(one[n].double().mean(0), other[n].double().mean(0)) for n in range(3)]
    tokens = [by_hand(one[n, t], other[n, t]) for n in range(3) for t in range(5)]
    found = sums.result()
    assert found.mean == pytest.approx(sum(blocks) / 3, abs=1e-12)
    assert found.least == pytest.approx(min(blocks), abs=1e-12)
    assert found.tokens == pytest.approx(sum(tokens) / 15, abs=1e-12)
    assert found.largest_difference == pytest.approx((one - other).abs().max().item(), abs=1e-6)
    assert (cosine(one, one) == 1).all()


@pytest.mark.parametrize("model_type", CLASSES)
def test_an_unchanged_encoder_is_identical_and_a_pooled_one_is_not(model_type: str, tmp_path: Path) -> None:
    original = save_encoder(tmp_path / "source", model_type)
    save_text(tmp_path / "text.txt", 170)
    converted(tmp_path / "source", tmp_path / "same", 4)
    converted(tmp_path / "source", tmp_path / "fewer", 1)
    same, fewer = run(tmp_path, "same"), run(tmp_path, "fewer")
    assert same.embeddings is not None
    assert same.verdict == "identical"
    assert (same.embeddings.cosines.least, same.embeddings.cosines.largest_difference) == (1, 0)
    assert fewer.outputs is None
    assert fewer.embeddings is not None
    assert fewer.verdict == "different"
    assert {finding.guilty for finding in fewer.findings} == {"cosine of embeddings"}
    assert all(layer.error > 0 for layer in fewer.embeddings.layers)
    assert len(fewer.embeddings.layers) == original.config.num_hidden_layers
    assert fewer.embeddings.text.tokens == 160
    assert_measured(fewer, tmp_path, original)
    assert run(tmp_path, "fewer", min_cosine=-1.0).verdict == "within limits"
    assert_shown(fewer)


@torch.inference_mode()
def assert_measured(report: Verification, directory: Path, original: PreTrainedModel) -> None:
    """Hold the cosine against transformers' own classes on the same blocks."""
    documents = read_documents((str(directory / "text.txt"),), None, "evaluation")
    ids = pack(documents, load_tokenizer(directory / "source"), context=32, tokens=160)
    fewer = AutoModel.from_pretrained(directory / "fewer", trust_remote_code=True).eval()
    pairs = zip(original(ids).last_hidden_state, fewer(ids).last_hidden_state, strict=True)
    cosines = [by_hand(one.mean(0), other.mean(0)) for one, other in pairs]
    assert report.embeddings is not None
    assert report.embeddings.cosines.mean == pytest.approx(sum(cosines) / len(cosines), abs=1e-4)
    assert report.embeddings.cosines.least == pytest.approx(min(cosines), abs=1e-4)


def assert_shown(report: Verification) -> None:
    assert report.embeddings is not None
    mean = f"{report.embeddings.cosines.mean:.4f}"
    rows = [row for part in summary(report) if isinstance(part, Section) for row in part.rows]
    assert ("cosine of embeddings, mean of blocks", mean) in rows
    assert json.loads(json.dumps(report.to_json()))["embeddings"]["cosines"]["mean"] == pytest.approx(float(mean), 1e-2)
    page = verify_page(report)
    assert "Cosine of embeddings" in page
    assert mean in page
    assert "at least 0.99" in page
    assert "160 tokens, float32 on cpu" in page


def test_an_encoder_cannot_write_its_own_text(tmp_path: Path) -> None:
    save_encoder(tmp_path / "source", "eurobert")
    converted(tmp_path / "source", tmp_path / "fewer", 1)
    with pytest.raises(TextError, match="cannot write text of its own"):
        verify(VerifyOptions(converted=tmp_path / "fewer"))
