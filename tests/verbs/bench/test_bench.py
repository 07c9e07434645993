"""`bench` from end to end: tiny pairs and shapes, every refusal, the page, and engines that are stood in for."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mha2gqa import BenchOptions, ConvertOptions, bench, convert
from mha2gqa.verbs.bench.limits import Filled
from mha2gqa.verbs.bench.outcome import BenchReport
from mha2gqa.verbs.bench.page import bench_page
from mha2gqa.verbs.bench.subjects import find_subjects
from mha2gqa.verbs.bench.transformers_engine import TransformersEngine, generate, going_on
from mha2gqa.verbs.export.gguf import write_gguf
from tests.families.tiny import save_tiny, tiny_config, tiny_model
from tests.forks import forked_converter
from tests.verbs.export.subjects import save_readable
from tests.verbs.verify.subjects import converted

QUICK = ("--tokens", 2, "--turns", 2, "--batch", "1,3", "--context", "8,24")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("pair")
    save_tiny("llama", directory / "source", num_key_value_heads=4, max_position_embeddings=64)
    return directory / "source", converted(directory / "source", directory / "gqa2", 2)


@pytest.fixture(scope="module")
def report(pair: tuple[Path, Path]) -> BenchReport:
    return bench(BenchOptions(converted=pair[1], batch=(1, 3), context=(8, 24), tokens=2, turns=2))


def test_what_is_measured_is_what_was_asked_for(report: BenchReport) -> None:
    points = [(row.context, row.batch, row.cache) for row in report.decode]
    assert points == [(c, b, k) for c in (8, 24) for b in (1, 3) for k in ("dynamic", "static")]
    assert {(row.original.count, row.converted.count) for row in report.decode} == {(4, 4)}
    assert {(row.batch, row.tokens) for row in report.prefill} == {(1, 8), (3, 8), (1, 24), (3, 24)}
    assert min(row.converted.low for row in report.decode) > 0
    assert (report.original.kv_heads, report.converted.kv_heads) == (4, 2)
    assert (report.setting.attention, report.setting.dtype, report.setting.engine) == (
        "sdpa",
        "float32",
        "transformers",
    )


def test_the_measured_cache_is_that_of_the_formula(report: BenchReport) -> None:
    token = 2 * 2 * 16 * 4  # layers, keys and values, width, bytes; a KV head
    for row in report.decode:
        assert row.cache_measured == row.cache_bytes
        held = row.context + (2 + 1) * (2 + 1) + 1 if row.cache == "static" else row.context
        assert row.cache_bytes == (row.batch * held * token * 4, row.batch * held * token * 2)
        before, after = row.step_bytes
        own = 2 * 64 * 2 * 16 * 2 * 4  # layers, width, KV heads that are gone, width, keys and values, bytes
        assert before - after == own + row.batch * row.context * token * 2
    assert report.original.cache_per_token == 4 * token


def test_a_window_is_benched_at_several_times_its_length_and_read_in_pieces(pair: tuple[Path, Path]) -> None:
    """What a cache occupies while a prompt is read: all of it at once, or W - 1 tokens and a piece of W."""
    window, token = 8, 2 * 2 * 4 * 16 * 4  # layers, keys and values, heads, width, bytes
    output = convert(ConvertOptions(model=str(pair[0]), window=window, output=pair[0].with_name("w8"))).output
    found = bench(BenchOptions(converted=output, batch=(2,), tokens=1, turns=1))
    assert [row.context for row in found.decode] == [8, 8, 16, 16, 32, 32]
    for row in found.decode:
        kept = [window - 1, window][row.cache == "static"]
        assert row.cache_measured[1] == 2 * token * kept
    read = {(row.tokens, row.chunk): row.peak for row in found.prefill}
    assert read == {
        (8, None): (2 * token * 8, 2 * token * 8),
        (16, None): (2 * token * 16, 2 * token * 16),
        (16, 8): (2 * token * 16, 2 * token * 15),
        (32, None): (2 * token * 32, 2 * token * 32),
        (32, 8): (2 * token * 32, 2 * token * 15),
    }
    assert "32 by 8" in bench_page(found) and "read in pieces as long as the window" in bench_page(found)


def test_the_largest_batch_is_of_the_memory_that_is_given(pair: tuple[Path, Path]) -> None:
    options = BenchOptions(converted=pair[1], batch=(1,), context=(16,), cache=("dynamic",), tokens=1, turns=1)
    found = bench(BenchOptions(**{**vars(options), "memory": "10MB"}))
    (fit,) = found.fits
    for batch, side in ((fit.original, found.original), (fit.converted, found.converted)):
        assert side.weights + batch * 16 * side.cache_per_token <= 10_000_000
        assert side.weights + (batch + 1) * 16 * side.cache_per_token > 10_000_000
    assert fit.tried is None
    assert found.setting.memory == 10_000_000


def test_decoding_from_a_cache_writes_what_generation_writes() -> None:
    model: Any = tiny_model(tiny_config("llama", num_key_value_heads=2))
    model.generation_config.eos_token_id = None
    engine = TransformersEngine(model, seed=1)
    batch = engine.start(2, Filled(4), "static", 20)  # as many tokens as are read for real
    ids = batch._ids_BT.clone()
    assert len(batch.turn(3)) == 3
    assert len(batch.turn(2)) == 2
    expected, _ = generate(model, 4 + 3, going_on(ids))
    torch.testing.assert_close(batch._ids_BT, expected)


def test_the_models_of_a_shape_share_what_is_the_same(tmp_path: Path) -> None:
    config = tiny_config("llama", num_key_value_heads=4).to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "own.json").write_text(json.dumps(config))
    subjects = find_subjects(BenchOptions(shape=str(tmp_path / "own.json"), groups=1))
    first, second = subjects.load(seed=4)
    shared = dict(first.named_parameters())
    fewer = {name for name, parameter in second.named_parameters() if parameter is not shared[name]}
    assert fewer == {f"model.layers.{n}.self_attn.{kind}_proj.weight" for n in (0, 1) for kind in "kv"}
    assert all(
        parameter.isfinite().all() and parameter.std() > 0
        for name, parameter in second.named_parameters()
        if name in fewer
    )
    again, _ = subjects.load(seed=4)
    torch.testing.assert_close(dict(again.named_parameters()), shared)


def test_a_shape_longer_than_its_config_says(cli: Any) -> None:
    config = tiny_config("llama", num_key_value_heads=4, max_position_embeddings=16).to_dict()
    Path("own.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    answer = cli("bench", "--shape", "own.json", "--groups", 1, *QUICK, "--cache", "static", "--json")
    assert answer.code == 0, answer.err
    content = json.loads(answer.out)
    assert content["random_weights"]
    assert [content["converted"][key] for key in ("name", "kv_heads")] == ["own, 1 KV heads", 1]
    assert content["decode"][0]["limit"] > 1


def test_the_tables_and_the_page(cli: Any, pair: tuple[Path, Path]) -> None:
    answer = cli("bench", pair[1], *QUICK, "--attention", "grouped", "--report", "page")
    assert answer.code == 0, answer.err
    for part in ("attention grouped", "1.0 KiB -> 512 B a token (50%)", "decode", "prefill", "largest batch", "limit"):
        assert part in answer.out
    assert len(re.findall(r"^[13] +(?:8|24) +(?:dynamic|static)", answer.out, re.MULTILINE)) == 8
    html = Path("page/report.html").read_text()
    assert "<h1>4 → 2 KV heads</h1>" in html
    assert html.count('<svg class="plot"') == 2
    assert html.count("<tr>") == 3 + 8 + 4 + 2


def test_a_recipe_gives_the_options(cli: Any, pair: tuple[Path, Path]) -> None:
    Path("recipe.yaml").write_text("batch: 2\ncontext: 8,16\ncache: dynamic\ntokens: 1\nturns: 1\n")
    answer = cli("bench", pair[1], "--config", "recipe.yaml", "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["decode"]
    assert [(row["batch"], row["context"], row["cache"]) for row in rows] == [(2, 8, "dynamic"), (2, 16, "dynamic")]


def test_names_from_outside_stay_text(report: BenchReport) -> None:
    import dataclasses

    side = dataclasses.replace(report.original, name="<script>alert(1)</script>")
    html = bench_page(dataclasses.replace(report, original=side, model_type="<img src=x>"))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--context", 60), ("--context 60 does not fit the model", "at most 9 tokens")),
        (("--engine", "vllm"), ("needs the package vllm, which is not installed", "pip install vllm")),
        (("--engine", "mlx"), ("needs the package mlx-lm, which is not installed",)),
        (("--attention", "flash_attention_2", "--context", 4), ("cannot use --attention flash_attention_2",)),
        (("--device", "cuda"), ("There is no device 'cuda' here",)),
        (("--memory", "lots", "--context", 4), ("--memory lots is no size",)),
        (("--groups", 2), ("--groups, --latent and --rope-width belong to --shape",)),
        (("--batch", 10**9, "--context", 4), ("does not fit", "of cache are", "free")),
    ],
)
def test_what_cannot_be_timed_is_refused(refuse: Any, pair: tuple[Path, Path], arguments: Any, says: Any) -> None:
    refuse("bench", pair[1], *arguments, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch", "1,x"), "no list of positive whole numbers"),
        (("--context", "0"), "no list of positive whole numbers"),
        (("--cache", "paged"), "'paged' is not one of dynamic, static"),
        (("--engine", "ollama"), "'ollama' is not one of transformers, llama.cpp, vllm, mlx"),
        (("--turns", "0"), "turns"),
    ],
)
def test_wrong_usage(cli: Any, arguments: Any, says: str) -> None:
    answer = cli("bench", *arguments)
    assert answer.code == 2
    assert says in " ".join(answer.err.replace("│", " ").split())


def test_an_encoder_cannot_be_timed(refuse: Any) -> None:
    config = tiny_config("eurobert").to_dict() | {"architectures": ["EuroBertForMaskedLM"]}
    Path("own.json").write_text(json.dumps(config))
    refuse("bench", "--shape", "own.json", "-g", 1, says=("does not write text token by token",))


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(content, __spec__=object())
    monkeypatch.setitem(sys.modules, name, module)


def test_llama_cpp_decodes_the_gguf_beside_each_checkpoint(tmp_path: Path, cli: Any) -> None:
    converted = save_readable(tmp_path)
    arguments = ("bench", converted, "--engine", "llama.cpp", "--batch", 1, "--context", 8, "--turns", 2)
    missing = cli(*arguments)
    assert (missing.code, "There are 0 GGUF files beside" in missing.err) == (1, True)
    for directory in (converted, tmp_path / "llama"):
        with forked_converter():
            write_gguf(directory, "f32", force=False)
    answer = cli(*arguments, "--json")
    assert (answer.code, answer.err) == (0, "")
    content = json.loads(answer.out)
    assert "xllamacpp" in content["setting"]["versions"]
    (row,) = content["decode"]
    assert (row["cache"], row["original"]["count"], row["cache_measured"]) == ("own", 2, [None, None])
    assert row["converted"]["count"] == 2  # a step of so small a model is shorter than what a clock is off by
    assert "no cache in float64" in cli(*arguments, "--dtype", "float64").err
    assert "makes no use of --cache" in cli(*arguments, "--cache", "static").err
    assert "decodes one sequence" in cli(*arguments, "--batch", 2).err


def test_vllm_is_asked_for_the_first_token_and_for_more(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path], cli: Any
) -> None:
    asked: list[tuple[int, int, int]] = []
    made: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def generate(self, prompts: Any, sampling: Any, use_tqdm: bool) -> None:
            assert all(0 <= token < 128 for prompt in prompts for token in prompt["prompt_token_ids"])
            asked.append((len(prompts), len(prompts[0]["prompt_token_ids"]), sampling["max_tokens"]))
            clock[0] += 1.0 + sampling["max_tokens"] * 0.25

    clock = [0.0]
    stand_in(monkeypatch, "vllm", LLM=LLM, SamplingParams=dict)
    stand_in(monkeypatch, "vllm.v1.engine.exceptions", EngineDeadError=RuntimeError)
    monkeypatch.setattr("mha2gqa.engines.vllm.time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr("mha2gqa.verbs.bench.run.versions", lambda *more: dict.fromkeys(more, "0"))
    answer = cli(
        "bench", pair[1], "--engine", "vllm", "--batch", 2, "--context", 8, "--turns", 1, "--tokens", 4, "--json"
    )
    assert answer.code == 0, answer.err
    (row,) = json.loads(answer.out)["decode"]
    assert (row["original"]["median"], row["ratio"]["median"]) == (0.25, 1.0)
    assert asked[-2:] == [(2, 8, 1), (2, 8, 5)]
    assert [one["model"] for one in made] == [str(one) for one in pair]
    assert made[0]["max_model_len"] == 8 + 2 * 5 + 1
