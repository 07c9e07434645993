"""A few families through all three levels: what their class cannot do is not asked, everything else is."""

import json
from pathlib import Path

import pytest
import torch

from mha2gqa import VerifyOptions, verify
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.feed import Body, inputs
from mha2gqa.verbs.verify.behaviour import observe
from mha2gqa.verbs.verify.outcome import Verification
from tests.families.tiny import tiny_config, tiny_model
from tests.verbs.verify.subjects import converted, save_source, save_text

FAMILIES = ("llama", "phi3", "falcon", "gemma3", "jamba", "t5gemma", "eurobert", "llama4_text")


def run(directory: Path, name: str) -> Verification:
    options = VerifyOptions(converted=directory / name, data=(str(directory / "text.txt"),), context=32, tokens=160)
    return verify(options)


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = save_source(tmp_path / "source", request.param)
    converted(source, tmp_path / "same", 4)
    converted(source, tmp_path / "fewer", 1)
    save_text(tmp_path / "text.txt", 170)
    return tmp_path


def test_an_unchanged_model_is_identical_and_a_pooled_one_is_not(subject: Path) -> None:
    model_type = json.loads((subject / "source/config.json").read_text())["model_type"]
    same, fewer = run(subject, "same"), run(subject, "fewer")
    assert same.verdict == "identical"
    assert_nothing_differs(same)
    assert fewer.file is not None
    assert fewer.file.recomputed > 0
    assert not fewer.file.findings
    assert fewer.load is not None
    assert not fewer.load.findings
    assert_cache_shrinks(fewer, cached=model_type != "eurobert")
    assert fewer.outputs is not None
    assert fewer.verdict == "different"
    assert {finding.level for finding in fewer.findings} == {"outputs"}
    assert fewer.outputs.kl.mean > 0
    assert [layer.module for layer in fewer.outputs.layers] == Architecture(
        json.loads((subject / "source/config.json").read_text())
    ).attention_modules
    assert all(0 < layer.error < 10 for layer in fewer.outputs.layers)
    assert (fewer.outputs.loss is None) == (model_type == "eurobert")
    assert bool(fewer.outputs.continuations) == (model_type != "eurobert")
    assert fewer.outputs.text.tokens == 5 * (32 if model_type == "eurobert" else 31)


def assert_nothing_differs(report: Verification) -> None:
    level = report.outputs
    assert level is not None
    assert (level.kl.mean, level.kl.largest, level.largest_logit_difference) == (0, 0, 0)
    assert (level.top1, level.top5) == (1, 1)
    assert level.loss is None or (level.loss.difference, level.loss.interval) == (0, (0, 0))
    assert all(layer.error == 0 for layer in level.layers)
    assert all(text.original == text.converted and text.agreed == text.tokens for text in level.continuations)


def assert_cache_shrinks(report: Verification, *, cached: bool) -> None:
    assert report.load is not None
    before, after = report.load.original_cache, report.load.converted_cache
    if not cached:
        assert before is after is None
        return
    assert before is not None
    assert after is not None
    assert before.measured == before.formula
    assert after.measured == after.formula
    assert before.formula == 4 * after.formula
    assert {check.name for check in report.load.checks} >= {"cache bytes a token", "generation with and without cache"}


def test_a_speech_model_is_verified_as_far_as_tokens_go(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "canary")
    converted(source, tmp_path / "fewer", 1)
    save_text(tmp_path / "text.txt", 170)
    report = run(tmp_path, "fewer")
    assert report.verdict == "within limits"
    assert report.outputs is None
    assert report.reasons[-1].startswith("The outputs were not compared: the original gives no logits")
    assert report.load is not None
    assert [check.name for check in report.load.checks] == ["strict load", "forward"]
    assert "does not run on tokens alone" in report.load.checks[1].detail


def test_a_sliding_window_stops_the_growth_of_its_layers_cache(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "gemma3_text", max_position_embeddings=1024)
    converted(source, tmp_path / "fewer", 2)
    report = verify(VerifyOptions(converted=tmp_path / "fewer", levels=("load",)))
    assert report.load is not None
    cache = report.load.original_cache
    assert cache is not None
    config = json.loads((source / "config.json").read_text())
    kinds = config["layer_types"]
    full, token = kinds.count("full_attention"), cache.formula // len(kinds)
    windowed = (len(kinds) - full) * config["sliding_window"]
    assert 0 < full < len(kinds)
    assert cache.at == {context: token * (full * context + windowed) for context in (256, 512, 1024)}


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "cohere", "granite", "gemma3", "t5gemma", "eurobert", "falcon_h1", "llama4_text"]
)
def test_logits_by_ranges_of_positions_are_those_of_the_whole(model_type: str) -> None:
    """Soft-capped (gemma2), scaled (cohere, granite, falcon_h1), composite, not possible (llama4: run whole)."""
    model = tiny_model(tiny_config(model_type))
    ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        body = Body(model, ids[:1])
        assert body.is_chunked == (model_type != "llama4_text")
        whole = model(**inputs(model, ids)).logits
        read = body.read(ids)
        parts = [read(span) for span in (slice(0, 5), slice(5, 6), slice(6, 24))]
        again = model(**inputs(model, ids)).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole, again), "the model is as it was"


def test_a_cache_that_holds_something_else_would_be_seen() -> None:
    model = tiny_model(tiny_config("llama"))
    ids = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0))
    good = observe(model, ids, 24)
    assert good.cache == 1024
    assert isinstance(good.generation, float)
    assert isinstance(good.prefill, float)
    assert max(good.generation, good.prefill) < 1e-5
    attention = model.model.layers[0].self_attn
    forward = attention.forward
    # Rotates keys by their place in the piece that is read instead of in the text.
    attention.forward = lambda hidden_states, position_embeddings, **options: forward(
        hidden_states, tuple(part[:, :1] * torch.ones_like(part) for part in position_embeddings), **options
    )
    bad = observe(model, ids, 24)
    assert isinstance(bad.prefill, float)
    assert bad.prefill > 1e-3
