"""`bench` of encoder-decoders: what their caches hold, what a step reads, and that no encoder runs while decoding."""

import copy
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mha2gqa import BenchOptions, ConvertOptions, bench, convert
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.load import set_plain_generation
from mha2gqa.verbs.bench.grid import find_grid
from mha2gqa.verbs.bench.limits import Filled, costs
from mha2gqa.verbs.bench.outcome import BenchReport
from mha2gqa.verbs.bench.subjects import find_subjects
from mha2gqa.verbs.bench.transformers_engine import EncoderDecoderEngine, generate
from tests.families.tiny import tiny_config, tiny_model
from tests.shipped.subjects import SUBJECTS
from tests.shipped.subjects import filled as randomly_filled
from tests.verbs.uptrain.pair_subjects import TEXT_TO_TEXT, family

KINDS = ("dynamic", "static")
T5GEMMA = "t5gemma"
TYPES = [*map(str, TEXT_TO_TEXT), T5GEMMA]
SOURCE, TARGET, ROOM = 9, 6, 20


def model_of(model_type: str, **overrides: Any) -> PreTrainedModel:
    """A tiny model, whose generation is greedy and ends nowhere."""
    if model_type == T5GEMMA:
        model = tiny_model(tiny_config(T5GEMMA, **overrides))
    else:
        subject = family(model_type)
        model = randomly_filled(type(subject.native())(tiny_config(model_type, **overrides)))
    set_plain_generation(model)
    return model


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    return {**model.config.to_dict(), "architectures": [type(model).__name__]}


def shape_of(model_type: str, path: Path, **overrides: Any) -> str:
    """Write the config of a tiny model, and return where to."""
    path.write_text(json.dumps(config_of(model_of(model_type, **overrides))))
    return str(path)


def run(model: Any, source: int, target: int) -> EncoderDecoderCache:
    """Return the caches of two sequences that were read by the model itself."""
    generator = torch.Generator().manual_seed(7)
    sources, targets = (torch.randint(3, 90, (2, tokens), generator=generator) for tokens in (source, target))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model(input_ids=sources, decoder_input_ids=targets, past_key_values=cache, use_cache=True)
    return cache


def size(cache: EncoderDecoderCache) -> int:
    both = (cache.self_attention_cache, cache.cross_attention_cache)
    return sum(states.numel() * 4 for part in both for layer in part.layers for states in (layer.keys, layer.values))


@pytest.mark.parametrize("model_type", TYPES)
def test_the_caches_of_a_run_are_those_of_the_formula(model_type: str) -> None:
    model = model_of(model_type)
    cost = costs(Architecture(config_of(model)), 4)
    for source, target in ((SOURCE, TARGET), (SOURCE, TARGET + 2), (SOURCE + 3, TARGET)):
        assert size(run(model, source, target)) == 2 * cost.cache(Filled(target, source))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", TYPES)
def test_what_was_filled_is_as_large_as_what_was_read(model_type: str, kind: str) -> None:
    model = model_of(model_type)
    batch = EncoderDecoderEngine(model, 1).start(2, Filled(TARGET, SOURCE), kind, ROOM)
    held = Filled(TARGET + (ROOM if kind == "static" else 0), SOURCE)
    assert batch.cache_bytes == 2 * costs(Architecture(config_of(model)), 4).cache(held)
    assert len(batch.turn(3)) == 3
    assert len(batch.turn(2)) == 2
    cache = batch._inputs(batch._ids_BT)["past_key_values"]
    assert int(cache.get_seq_length()) == TARGET + 4 + 3 == batch._ids_BT.shape[1] - 1
    assert {layer.keys.shape[2] for layer in cache.cross_attention_cache.layers} == {SOURCE}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["t5", "umt5", "bart", "m2m_100", T5GEMMA])
@torch.no_grad()
def test_a_turn_writes_what_the_model_says_of_its_caches(model_type: str, kind: str) -> None:
    model: Any = model_of(model_type)
    batch = EncoderDecoderEngine(model, 1).start(2, Filled(TARGET, SOURCE), kind, ROOM)
    ids, known = batch._ids_BT.clone(), copy.deepcopy(batch._inputs(batch._ids_BT))
    model.get_encoder().register_forward_pre_hook(lambda *_: pytest.fail("the encoder runs"))
    batch.turn(3)
    for _ in range(4):
        answer = model(
            decoder_input_ids=ids[:, -1:],
            encoder_outputs=known["encoder_outputs"],
            past_key_values=known["past_key_values"],
            use_cache=True,
        )
        ids = torch.cat((ids, answer.logits[:, -1:].argmax(-1)), dim=1)
    torch.testing.assert_close(batch._ids_BT, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_may_have_more_layers_than_the_encoder(kind: str) -> None:
    model = model_of("t5", num_layers=1, num_decoder_layers=3)
    engine = EncoderDecoderEngine(model, 1)
    batch = engine.start(2, Filled(TARGET, SOURCE), kind, ROOM)
    batch.turn(2)
    assert engine.prefill(2, SOURCE) > 0
    assert len(batch._inputs(batch._ids_BT)["past_key_values"].self_attention_cache.layers) == 3


def test_prefill_reads_the_source_once_and_writes_a_token() -> None:
    model: Any = model_of("bart")
    read, written = [], []
    model.get_encoder().register_forward_pre_hook(
        lambda _, arguments, named: read.append(named["input_ids"].shape), with_kwargs=True
    )
    model.get_decoder().register_forward_pre_hook(
        lambda _, arguments, named: written.append(named["input_ids"].shape), with_kwargs=True
    )
    assert EncoderDecoderEngine(model, 1).prefill(3, 11) > 0
    assert (read, written) == ([(3, 11)], [(3, 1)])


def test_a_source_is_read_as_generation_reads_it() -> None:
    model: Any = model_of("t5")
    inputs = EncoderDecoderEngine(model, 1).prompts(2, SOURCE)
    written, times = generate(model, 5, inputs)
    torch.testing.assert_close(written, model.generate(input_ids=inputs["input_ids"], max_new_tokens=5))
    assert len(times) == 5


def read_in_a_step(model: Any) -> int:
    """Return the numbers of all weights that have a part in a step, but for tables: those with a gradient."""
    with torch.no_grad():
        cache = run(model, SOURCE, TARGET)
    states = torch.zeros(2, SOURCE, model.get_encoder().config.get_text_config(encoder=True).hidden_size)
    output = model(
        decoder_input_ids=torch.full((2, 1), 5),
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        past_key_values=cache,
        use_cache=True,
    )
    output.logits.square().sum().backward()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables -= {id(model.get_output_embeddings().weight)}
    return sum(one.numel() for one in model.parameters() if one.grad is not None and id(one) not in tables)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("t5", {"tie_word_embeddings": True}),
        ("t5", {"tie_word_embeddings": False, "num_layers": 3}),
        ("umt5", {}),
        ("bart", {}),
        ("marian", {}),
        ("m2m_100", {}),
        (T5GEMMA, {}),
    ],
)
def test_a_step_reads_neither_the_encoder_nor_what_made_the_source(model_type: str, overrides: dict[str, Any]) -> None:
    model = model_of(model_type, **overrides)
    cost = costs(Architecture(config_of(model)), 2)
    assert cost.read == 2 * read_in_a_step(model)
    assert cost.weights == 2 * sum(parameter.numel() for parameter in model.parameters())
    filled = Filled(TARGET, SOURCE)
    assert cost.step(5, filled) == cost.read + 5 * cost.cache(filled)
    batch = cost.largest_batch(filled, 10_000_000)
    assert cost.weights + batch * cost.cache(filled) <= 10_000_000 < cost.weights + (batch + 1) * cost.cache(filled)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    model = model_of("t5", num_layers=2, num_decoder_layers=3)
    model.save_pretrained(directory / "original")
    groups = {"decoder": 1, "cross": 2}
    convert(ConvertOptions(model=str(directory / "original"), groups=groups, output=directory / "converted"))
    return directory / "converted"


@pytest.fixture(scope="module")
def report(pair: Path) -> BenchReport:
    return bench(BenchOptions(converted=pair, batch=(1, 3), context=(8, 24), target_context=5, tokens=2, turns=2))


def test_the_measured_caches_are_those_of_the_formula(report: BenchReport) -> None:
    assert [(row.context, row.batch, row.cache) for row in report.decode] == [
        (c, b, k) for c in (8, 24) for b in (1, 3) for k in KINDS
    ]
    head = 3 * 2 * 16 * 4  # layers, keys and values, width, bytes
    for row in report.decode:
        own = 5 + ((2 + 1) * (2 + 1) + 1 if row.cache == "static" else 0)
        assert row.cache_measured == row.cache_bytes
        assert row.cache_bytes[0] == row.batch * head * 4 * (row.context + own)
        assert row.cache_bytes[1] == row.batch * head * (2 * row.context + own)
        gone = 3 * 64 * 2 * 16 * 3 * 4  # layers, width, keys and values, width, KV heads of self-attention, bytes
        assert row.step_bytes[0] - row.step_bytes[1] == gone + row.batch * head * (2 * row.context + 3 * 5)
    for side, own, cross in ((report.original, 4, 4), (report.converted, 1, 2)):
        assert (side.cache_per_token, side.cross_cache_per_token) == (head * own, head * cross)
        assert side.kv_heads == max(own, cross)  # the encoder has 4 in both
    assert {(row.batch, row.tokens) for row in report.prefill} == {(1, 8), (3, 8), (1, 24), (3, 24)}
    assert report.target_context == 5


def test_the_tables_and_the_page_tell_source_and_target(cli: Any, pair: Path) -> None:
    options = ("--batch", "1,3", "--context", "8,24", "--target-context", 5, "--tokens", 2, "--turns", 2)
    answer = cli("bench", pair, *options, "--report", "page")
    assert answer.code == 0, answer.err
    for part in (
        "1.5 KiB -> 768 B a token of the source (50%), 1.5 KiB -> 384 B a token of the target (25%)",
        "5 tokens in the decoder's own cache when decoding begins",
    ):
        assert part in answer.out
    assert len(re.findall(r"^[13] +(?:8|24) +(?:dynamic|static)", answer.out, re.MULTILINE)) == 8
    assert len(re.findall(r"^batch +source ", answer.out, re.MULTILINE)) == 2
    assert re.search(r"^source +largest batch", answer.out, re.MULTILINE)
    html = Path("page/report.html").read_text()
    parts = ("<h1>4 → 2 KV heads</h1>", "Cache of the source", "Cache of the target", "source 24, ", "source (tokens)")
    for part in parts:
        assert part in html, part
    assert "context" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--context", 65), ("--context 65 does not fit the model.", "at most 64 tokens")),
        (("--target-context", 10), ("--target-context 10 does not fit the model with 55 tokens", "at most 9 tokens")),
        (("--context", 8, "--target-context", 4, "--batch", 10**9), ("does not fit", "of cache are", "free")),
    ],
)
def test_what_does_not_fit_is_refused(refuse: Any, tmp_path: Path, arguments: Any, says: Any) -> None:
    model = model_of("bart")
    model.save_pretrained(tmp_path / "original")
    convert(ConvertOptions(model=str(tmp_path / "original"), groups=2, output=tmp_path / "converted"))
    refuse("bench", tmp_path / "converted", *arguments, says=says)


def test_a_source_may_be_as_long_as_the_encoder_reads(pair: Path, tmp_path: Path) -> None:
    model_of("bart").save_pretrained(tmp_path / "original")
    convert(ConvertOptions(model=str(tmp_path / "original"), groups=2, output=tmp_path / "converted"))
    options = BenchOptions(converted=tmp_path / "converted", context=(64,), batch=(2,))
    grid = find_grid(options, find_subjects(options), KINDS)
    assert grid.filled == [Filled(9, 64)]  # 64 positions without the 55 tokens to decode
    assert grid.points == [("dynamic", 2, Filled(9, 64)), ("static", 2, Filled(9, 64))]
    assert (grid.target, grid.longest, grid.prompts) == (9, 64, ((2, 64),))
    own = BenchOptions(converted=pair)  # T5 reads and writes as much as it is told
    assert find_grid(own, find_subjects(own), KINDS).filled == [Filled(32, one) for one in (1024, 4096, 16384)]


def test_a_target_is_for_models_with_an_encoder(refuse: Any) -> None:
    arguments = ("--shape", "olmo-1b", "-g", 2, "--target-context", 8)
    refuse("bench", *arguments, says=("--target-context is for models with an encoder", "--context alone"))


def test_engines_that_know_no_encoder_are_refused(refuse: Any, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("vllm")
    module.__spec__ = object()
    monkeypatch.setitem(sys.modules, "vllm", module)
    refuse("bench", pair, "--engine", "vllm", says=("--engine vllm runs decoders alone here", "--engine transformers"))


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("whisper", "WhisperForConditionalGeneration reads input_features"),
        ("speech_to_text", "Speech2TextForConditionalGeneration reads input_features"),
        ("canary", "CanaryForConditionalGeneration reads input_features"),
        ("dia", "DiaForConditionalGeneration writes no text"),
        ("t5gemma2", "T5Gemma2ForConditionalGeneration has no cross-attention of its own"),
    ],
)
def test_other_encoders_are_refused_with_the_reason(refuse: Any, model_type: str, says: str) -> None:
    speaks = [one.native() for one in SUBJECTS if one.model_type == model_type]
    model = speaks[0] if speaks else tiny_model(tiny_config(model_type))
    Path("own.json").write_text(json.dumps(config_of(model)))
    refuse("bench", "--shape", "own.json", "-g", 2, says=(says,))


@pytest.mark.parametrize(("model_type", "target"), [("t5", 70), ("bart", 70), (T5GEMMA, 5)])  # within its window
def test_a_shape_with_an_encoder(cli: Any, model_type: str, target: int) -> None:
    shape = shape_of(model_type, Path("own.json"))
    options = ("--batch", 2, "--context", 100, "--target-context", target, "--turns", 1, "--tokens", 1)
    answer = cli("bench", "--shape", shape, "-g", 1, *options, "--json")
    assert answer.code == 0, answer.err
    content = json.loads(answer.out)
    assert (content["random_weights"], content["target_context"]) == (True, target)
    assert [content[side]["kv_heads"] for side in ("original", "converted")] == [4, 1]
    for row in content["decode"]:
        assert row["cache_measured"] == row["cache_bytes"]
        assert row["cache_bytes"][0] == 4 * row["cache_bytes"][1]
    subjects = find_subjects(BenchOptions(shape=shape, groups=1))
    assert subjects.shares_weights
    first, second = (dict(model.named_parameters()) for model in subjects.load(seed=4))
    fewer = {name for name, parameter in second.items() if parameter is not first[name]}
    assert fewer == {name for name in first if re.search(r"[.](k|v|k_proj|v_proj)[.]", name) and "encoder." not in name}


def test_a_shape_whose_host_names_its_weights_otherwise_shares_none(cli: Any) -> None:
    config = tiny_config("gptj").to_dict() | {"architectures": ["GPTJForCausalLM"]}
    Path("own.json").write_text(json.dumps(config))
    assert not find_subjects(BenchOptions(shape="own.json", groups=2)).shares_weights
    answer = cli("bench", "--shape", "own.json", "-g", 2, "--context", 8, "--turns", 1, "--tokens", 1, "--json")
    assert answer.code == 0, answer.err
    assert all(row["cache_bytes"][0] == 2 * row["cache_bytes"][1] for row in json.loads(answer.out)["decode"])
