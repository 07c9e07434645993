"""The numbers of the outputs level against a plain float64 loop over transformers' own class, token by token."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from mha2gqa import VerifyOptions, verify
from mha2gqa.sections import Section
from mha2gqa.verbs.verify import metrics, side_by_side, words
from mha2gqa.verbs.verify.judge import LOSSY, limit_findings
from mha2gqa.verbs.verify.levels import OutputsLevel
from mha2gqa.verbs.verify.measures import Continuation
from mha2gqa.verbs.verify.metrics import LayerErrors, Sums, bootstrap
from tests.texts.chats import CHATML, character_tokenizer
from tests.verbs.verify.subjects import BOS, converted, save_source, save_text

CONTEXT, BLOCKS = 24, 7


@dataclass
class Expected:
    """What the loop found."""

    losses: dict[str, list[list[float]]]
    """Model -> block -> position."""
    divergences: list[float]
    top1: float
    top5: float
    largest: float
    layers: list[float]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("outputs")
    converted(save_source(directory / "source"), directory / "converted", 2)
    save_text(directory / "text.txt", CONTEXT * BLOCKS + 5)
    return directory


@pytest.fixture(scope="module")
def expected(subject: Path) -> Expected:
    models = {
        name: LlamaForCausalLM.from_pretrained(subject / name, dtype=torch.float64).eval()
        for name in ("source", "converted")
    }
    ids = [BOS, *AutoTokenizer.from_pretrained(subject / "source")((subject / "text.txt").read_text())["input_ids"]]
    blocks = [ids[start : start + CONTEXT] for start in range(0, CONTEXT * BLOCKS, CONTEXT)]
    found = Expected({name: [] for name in models}, [], 0.0, 0.0, 0.0, [])
    squares = torch.zeros(2, 2, dtype=torch.float64)
    with torch.inference_mode():
        for block in blocks:
            logits = {name: model(torch.tensor([block])).logits[0] for name, model in models.items()}
            loop_over_tokens(block, logits, found)
            outputs = {name: attention_outputs(model, block) for name, model in models.items()}
            for layer, (one, other) in enumerate(zip(outputs["source"], outputs["converted"], strict=True)):
                squares[layer] += torch.stack([one.square().sum(), (other - one).square().sum()])
    found.layers = [math.sqrt(error / whole) for whole, error in squares.tolist()]
    return found


def loop_over_tokens(block: list[int], logits: dict[str, torch.Tensor], found: Expected) -> None:
    first, second = logits["source"].tolist(), logits["converted"].tolist()
    for losses in found.losses.values():
        losses.append([])
    tokens = BLOCKS * (CONTEXT - 1)
    for position in range(CONTEXT - 1):
        one, other = first[position], second[position]
        p, q = log_softmax(one), log_softmax(other)
        found.losses["source"][-1].append(-p[block[position + 1]])
        found.losses["converted"][-1].append(-q[block[position + 1]])
        found.divergences.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
        best, others = (sorted(range(len(row)), key=lambda token: -row[token])[:5] for row in (one, other))
        found.top1 += (best[0] == others[0]) / tokens
        found.top5 += len({*best} & {*others}) / 5 / tokens
        found.largest = max(found.largest, *(abs(a - b) for a, b in zip(one, other, strict=True)))


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(value) for value in row))
    return [value - total for value in row]


def attention_outputs(model: Any, block: list[int]) -> list[torch.Tensor]:
    """Each layer's attention, called by hand on the hidden states that enter the layer."""
    inner = model.model
    states = inner(torch.tensor([block]), output_hidden_states=True).hidden_states
    positions = torch.arange(len(block))[None]
    rotary = inner.rotary_emb(states[0], positions)
    return [
        layer.self_attn(layer.input_layernorm(state), position_embeddings=rotary, attention_mask=None)[0]
        for layer, state in zip(inner.layers, states[:-1], strict=True)
    ]


def run(subject: Path, **options: Any) -> OutputsLevel:
    text = (str(subject / "text.txt"),)
    levels: Any = ("outputs",)
    asked = {"converted": subject / "converted", "data": text, "context": CONTEXT, "levels": levels} | options
    report = verify(VerifyOptions(**asked))
    assert report.outputs is not None
    return report.outputs


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_counted_alone_beside_all(subject: Path, expected: Expected, batch_size: int) -> None:
    text, given = (subject / "text.txt").read_text(), 60
    (subject / "rows.jsonl").write_text(json.dumps({"prompt": text[:given], "completion": text[given:]}))
    data = (str(subject / "rows.jsonl"),)
    outputs = run(subject, data=data, dtype="float64", batch_size=batch_size)
    assert outputs.kl == run(subject, dtype="float64", batch_size=batch_size).kl, "the same tokens in all"
    marked = [(block, at) for block in range(BLOCKS) for at in range(CONTEXT - 1) if block * CONTEXT + at >= given]
    found = outputs.answers
    assert found is not None
    assert found.tokens == len(marked)
    for name, loss in (("source", found.original), ("converted", found.converted)):
        assert loss == pytest.approx(numpy.mean([expected.losses[name][block][at] for block, at in marked]), rel=1e-9)
    kl = numpy.mean([expected.divergences[block * (CONTEXT - 1) + at] for block, at in marked])
    assert found.kl == pytest.approx(kl, rel=1e-5)
    assert 0 <= found.top1 <= 1
    assert "answers" in outputs.text.description
    for more, problems in ((0.5, ["grew by 64.87%; the limit is 1.00%"]), (0.0, [])):
        told = replace(outputs, answers=replace(found, converted=found.original + more))
        limits = [one.problem for one in limit_findings(told, LOSSY) if one.guilty == "perplexity of answers"]
        assert limits == problems


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_number_is_that_of_the_loop(subject: Path, expected: Expected, dtype: str, batch_size: int) -> None:
    level = run(subject, dtype=dtype, batch_size=batch_size)
    assert level.loss is not None
    approx = {"rel": 1e-6, "abs": 1e-6}
    means = {name: numpy.mean(losses) for name, losses in expected.losses.items()}
    assert level.loss.original == pytest.approx(means["source"], **approx)
    assert level.loss.converted == pytest.approx(means["converted"], **approx)
    assert level.loss.perplexities == pytest.approx((math.exp(means["source"]), math.exp(means["converted"])))
    assert level.kl.mean == pytest.approx(math.fsum(expected.divergences) / len(expected.divergences), **approx)
    ordered = sorted(expected.divergences)
    assert level.kl.p99 == pytest.approx(ordered[math.ceil(0.99 * len(ordered)) - 1], **approx)
    assert level.kl.largest == pytest.approx(ordered[-1], **approx)
    assert level.top1 == pytest.approx(expected.top1)
    assert level.top5 == pytest.approx(expected.top5)
    assert level.largest_logit_difference == pytest.approx(expected.largest, rel=1e-5)
    assert [layer.error for layer in level.layers] == pytest.approx(expected.layers, rel=1e-5)
    assert [layer.module for layer in level.layers] == [f"model.layers.{number}.self_attn" for number in range(2)]


def test_losses_by_position_and_the_histogram_are_those_of_the_loop(subject: Path, expected: Expected) -> None:
    level = run(subject, dtype="float64")
    for name in ("source", "converted"):
        by_position = numpy.mean(expected.losses[name], axis=0)
        measured = [getattr(one, "original" if name == "source" else name) for one in level.positions]
        assert measured == pytest.approx(by_position.tolist(), abs=1e-9)
    assert [(one.first, one.last) for one in level.positions] == [(place, place) for place in range(1, CONTEXT)]
    counts, _ = numpy.histogram(expected.divergences, bins=level.kl.edges)
    assert list(level.kl.counts) == counts.tolist()
    assert sum(level.kl.counts) == level.text.tokens == BLOCKS * (CONTEXT - 1)


def test_the_interval_is_that_of_a_bootstrap_over_blocks(subject: Path, expected: Expected) -> None:
    level = run(subject, dtype="float64", seed=5)
    assert level.loss is not None
    assert level.loss.interval is not None
    differences = numpy.mean(expected.losses["converted"], axis=1) - numpy.mean(expected.losses["source"], axis=1)
    generator = numpy.random.default_rng(0)
    means = [generator.choice(differences, len(differences)).mean() for _ in range(20_000)]
    low, high = numpy.percentile(means, [2.5, 97.5])
    # The ends of 2000 resamples scatter by about 3 % of the width.
    assert level.loss.interval == pytest.approx((low, high), abs=0.12 * (high - low))
    assert run(subject, dtype="float64", seed=5).loss == level.loss
    other = run(subject, dtype="float64", seed=6).loss
    assert other is not None
    assert other.interval != level.loss.interval
    assert bootstrap(torch.ones(1), 0) is None


def test_chunks_of_positions_change_nothing(subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(subject, dtype="float64")
    monkeypatch.setattr(metrics, "_CHUNK", 128 * 5)
    chunked = run(subject, dtype="float64")
    assert chunked.kl.mean == pytest.approx(whole.kl.mean, rel=1e-12)
    assert chunked.positions[3].converted == pytest.approx(whole.positions[3].converted, rel=1e-12)
    assert (chunked.top1, chunked.top5) == (whole.top1, whole.top5)


def test_a_vocabulary_that_is_masked_in_part_gives_no_undefined_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 6, 9, generator=generator)
    for logits in (first, second):
        logits[..., 7:] = -math.inf
    sums = Sums()
    sums.add(lambda span: first[:, span], lambda span: second[:, span], torch.zeros(1, 6).long(), predicts=True)
    p, q = (logits[0, :5, :7].double().softmax(-1) for logits in (first, second))
    assert sums.divergence().mean == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)
    assert sums.largest == pytest.approx((first - second)[0, :5, :7].abs().max().item())


def test_evenly_spaced_positions_stand_for_all_where_all_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.nn.Linear(8, 8) for _ in range(2))
    inputs = torch.randn(2, 40, 8, generator=generator)

    def error(kept: int) -> float:
        monkeypatch.setattr("mha2gqa.verbs.verify.metrics._KEPT", kept)
        layers = LayerErrors({"0": "0"})
        with layers.original(torch.nn.Sequential(first)):
            one = first(inputs)
        with layers.converted(torch.nn.Sequential(second)):
            other = second(inputs)
        step = -(-inputs.numel() // kept)
        wanted = (other - one)[:, ::step].norm() / one[:, ::step].norm()
        (layer,) = layers.results()
        assert layer.error == pytest.approx(wanted.item(), rel=1e-5)
        return layer.error

    assert error(10_000) != error(100)


def test_continuations_are_greedy_and_say_how_far_they_agree(subject: Path) -> None:
    level = run(subject)
    tokenizer = AutoTokenizer.from_pretrained(subject / "source")
    original, other = (LlamaForCausalLM.from_pretrained(subject / name).eval() for name in ("source", "converted"))
    assert len(level.continuations) == 3
    ids = torch.tensor([[BOS, *tokenizer((subject / "text.txt").read_text())["input_ids"]][: CONTEXT // 2]])
    assert level.continuations[0].prompt == tokenizer.decode(ids[0], skip_special_tokens=True)
    written = []
    for model in (original, other):
        tokens = ids
        for _ in range(level.continuations[0].tokens):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
        written.append(tokens[0, ids.shape[1] :].tolist())
    assert level.continuations[0].original == tokenizer.decode(written[0], skip_special_tokens=True)
    assert level.continuations[0].converted == tokenizer.decode(written[1], skip_special_tokens=True)
    differs = [place for place, (a, b) in enumerate(zip(*written, strict=True)) if a != b]
    assert level.continuations[0].agreed == (differs[0] if differs else len(written[0]))


def test_a_chat_model_answers_questions_of_its_template(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", vocab_size=128, max_position_embeddings=512)
    tokenizer = character_tokenizer(CHATML)
    tokenizer.save_pretrained(source)
    save_text(tmp_path / "text.txt", 100)
    outputs = run(tmp_path, converted=converted(source, tmp_path / "converted", 2), dtype="float64")
    assert [one.prompt for one in outputs.continuations] == list(side_by_side.QUESTIONS)
    assert [*outputs.agreement] == [16, 64, 256]
    assert all(outputs.agreement[length] <= outputs.agreement[16] for length in (64, 256))
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
    for question, one in zip(side_by_side.QUESTIONS, outputs.continuations, strict=True):
        asked: Any = [{"role": "user", "content": question}]
        ids = torch.tensor([tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]])
        start = ids.shape[1]
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert one.original.startswith(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


@pytest.mark.parametrize("length", [1, 100, 101])
def test_dots_stand_where_something_was_left_out_and_nowhere_else(subject: Path, length: int) -> None:
    report = verify(VerifyOptions(converted=subject / "converted", data=(str(subject / "text.txt"),), context=CONTEXT))
    assert report.outputs is not None
    written = "a" + "b" * (length - 1)
    one = Continuation(prompt=written, original=written, converted=written[:-1], agreed=0, tokens=64, written=64)
    told = replace(report, outputs=replace(report.outputs, continuations=(one,)))
    sections = [part for part in words.summary(told) if isinstance(part, Section)]
    rows = {row[0].strip(): row[1] for section in sections for row in section.rows if len(row) == 2}
    assert rows["prompt"] == ("... " + "b" * 100 if length > 100 else written)
    assert rows["original"] == ("a" + "b" * 99 + " ..." if length > 100 else written)
    assert rows["converted"] == written[:-1]


def test_an_answer_that_is_over_is_the_same_when_all_of_it_is() -> None:
    def answer(agreed: int, tokens: int) -> Continuation:
        return Continuation(prompt="", original="", converted="", agreed=agreed, tokens=tokens, written=64)

    assert side_by_side.agreement([answer(7, 7), answer(20, 64), answer(3, 9)]) == {16: 2 / 3, 64: 1 / 3}
    assert side_by_side.agreement([]) == {}
