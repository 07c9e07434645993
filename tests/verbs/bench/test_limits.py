"""The bytes of a step and of a cache, by formula: held against what a run keeps, and against counting by hand."""

import math
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from mha2gqa.model.architecture import Architecture
from mha2gqa.verbs.bench.limits import Costs, Filled, costs, largest_that_runs, why_not_faster
from mha2gqa.verbs.bench.outcome import Decode, Ratio, Times
from mha2gqa.verbs.bench.transformers_engine import fill
from mha2gqa.verbs.verify.behaviour import held_bytes
from tests.families.tiny import tiny_config, tiny_model

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "MHA": ("llama", {}),
    "GQA": ("llama", {"num_key_value_heads": 2}),
    "MQA": ("llama", {"num_key_value_heads": 1}),
    "fused MQA": ("gpt_bigcode", {"multi_query": True}),
    "windows": ("mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "some windows": ("gemma3_text", {"num_key_value_heads": 2, "sliding_window": 8}),
    "latent": ("deepseek_v3", {}),
}


def model_of(kind: str) -> tuple[Any, dict[str, Any]]:
    model_type, overrides = KINDS[kind]
    config = tiny_config(model_type, **overrides)
    return tiny_model(config), {**config.to_dict(), "architectures": [type(tiny_model(config)).__name__]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [5, 24])
def test_the_cache_of_a_run_is_that_of_the_formula(kind: str, context: int) -> None:
    model, config_json = model_of(kind)
    cost = costs(Architecture(config_json), 4)
    batch = 3
    cache = DynamicCache(config=model.config)
    model(torch.randint(3, 90, (batch, context)), past_key_values=cache, use_cache=True)
    # Between two tokens transformers keeps one less than the window, which the next token then fills.
    missing = sum(layer.numbers() * 4 for layer in cost.layers if layer.window and layer.window <= context)
    assert held_bytes(cache) == batch * (cost.cache(Filled(context)) - missing)


@pytest.mark.parametrize("kind", ["MHA", "GQA", "MQA", "windows", "some windows"])
def test_a_static_cache_has_room_for_what_the_formula_says(kind: str) -> None:
    model, config_json = model_of(kind)
    cache = StaticCache(config=model.config, max_cache_len=24)
    model(torch.randint(3, 90, (2, 5)), past_key_values=cache, use_cache=True)
    assert held_bytes(cache) == 2 * costs(Architecture(config_json), 4).cache(Filled(24))


@pytest.mark.parametrize("kind", ["GQA", "windows", "some windows"])
@pytest.mark.parametrize("static", [False, True])
def test_a_cache_that_was_filled_is_as_large_as_one_that_was_read(kind: str, static: bool) -> None:
    model, _ = model_of(kind)
    sizes, lengths = [], []
    for read in (20, 4):
        config = model.config
        cache: Any = StaticCache(config=config, max_cache_len=32) if static else DynamicCache(config=config)
        model(torch.randint(3, 90, (2, read)), past_key_values=cache, use_cache=True)
        fill(cache, 2, 20 - read, cache)
        sizes.append(held_bytes(cache))
        lengths.append(int(cache.get_seq_length()))
    assert sizes[0] == sizes[1]
    assert lengths == [20, 20]


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_reads_every_weight_but_a_table_that_is_looked_up(tied: bool) -> None:
    config = tiny_config("llama", tie_word_embeddings=tied)
    model: Any = tiny_model(config)
    cost = costs(Architecture({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}), 2)
    weights = sum(parameter.numel() for parameter in model.parameters())
    table = model.model.embed_tokens.weight.numel()
    assert (cost.parameters, cost.weights) == (weights, 2 * weights)
    assert cost.read == 2 * (weights if tied else weights - table)
    assert cost.step(5, Filled(7)) == cost.read + 5 * cost.cache(Filled(7))


@pytest.mark.parametrize("memory", [0, 10_000, 1_000_000, 10_000_000])
def test_the_largest_batch_fits_and_one_more_does_not(memory: int) -> None:
    _, config_json = model_of("GQA")
    cost = costs(Architecture(config_json), 4)
    batch = cost.largest_batch(Filled(100), memory)
    if batch:
        assert cost.weights + batch * cost.cache(Filled(100)) <= memory
    assert cost.weights + (batch + 1) * cost.cache(Filled(100)) > memory


@pytest.mark.parametrize(("most", "true"), [(0, 0), (1, 0), (1, 1), (7, 3), (16, 16), (100, 37), (1000, 999)])
def test_the_largest_batch_that_runs_is_found(most: int, true: int) -> None:
    tried: list[int] = []

    def runs(batch: int) -> bool:
        tried.append(batch)
        return batch <= true

    found = largest_that_runs(runs, most)
    assert found <= true
    assert true - found <= max(1, most // 16) - 1 or found == true == most
    assert len(tried) <= 2 + math.ceil(math.log2(most + 1))


def row(measured: float, before: int, after: int, *, spread: float = 0.0) -> Decode:
    times = Times(median=1.0, low=1.0 - spread / 2, high=1.0 + spread / 2, count=4)
    return Decode(
        batch=1,
        context=8,
        cache="static",
        original=times,
        converted=times,
        ratio=Ratio(median=measured, low=measured, high=measured),
        step_bytes=(before, after),
        cache_bytes=(1, 1),
        cache_measured=(1, 1),
    )


@pytest.mark.parametrize(
    ("one", "repeats", "says"),
    [
        (row(1.0, 110, 100), False, "the cache is 9% of the bytes of a step"),
        (row(1.1, 124, 100), True, "the cache is 19% of the bytes of a step"),
        (row(1.7, 200, 100), False, ""),
        (row(1.7, 200, 100), True, ""),
        (row(1.5, 200, 100), True, "attention repeats the KV heads to 32 before it reads them"),
        (row(1.5, 2 * 10**9, 10**9), False, "not bound by the bytes: 1.0 GB/s of them after, 2.0 before"),
        (row(1.5, 200, 100, spread=0.2), True, ""),
    ],
)
def test_why_a_row_is_not_faster(one: Decode, repeats: bool, says: str) -> None:
    original = Costs(parameters=50, weights=110, read=100, layers=[], itemsize=2)
    assert why_not_faster(one, original=original, repeats=repeats, heads=32) == says


def test_times_are_a_median_and_quartiles() -> None:
    times = Times.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (times.low, times.median, times.high, times.count) == (2.0, 3.0, 4.0, 5)
    assert times.spread == pytest.approx(2 / 3)
    assert (Times.of([2.0]).median, Times.of([2.0]).spread, Times.of([2.0]).count) == (2.0, 0.0, 1)


def test_rates_and_limit_follow_from_the_fields() -> None:
    one = row(1.5, 300, 100)
    assert one.limit == 3.0
    assert one.rates == (300.0, 100.0)
    assert not one.disturbed
    assert row(1.0, 2, 1, spread=0.16).disturbed
    assert not row(1.0, 2, 1, spread=0.14).disturbed


def test_costs_are_of_the_dtype() -> None:
    _, config_json = model_of("GQA")
    both: list[Costs] = [costs(Architecture(config_json), size) for size in (2, 4)]
    assert both[1].cache(Filled(9)) == 2 * both[0].cache(Filled(9)) == 4 * 2 * 2 * 2 * 16 * 9
