"""The attention implementations: `grouped` computes what a loop over heads computes, and repeats nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.integrations import sdpa_attention

from mha2gqa import BenchOptions
from mha2gqa.errors import TimingError
from mha2gqa.verbs.bench import attention
from mha2gqa.verbs.bench.attention import grouped_attention, own, repeats_heads, use_attention
from mha2gqa.verbs.bench.limits import Filled
from mha2gqa.verbs.bench.subjects import find_subjects
from mha2gqa.verbs.bench.transformers_engine import EncoderDecoderEngine
from tests.families.tiny import tiny_config, tiny_model
from tests.verbs.uptrain.pair_subjects import family


class Module(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def loop(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return attention `[B, T, H, E]` one sequence, head and query at a time, in float64."""
    batch, heads, length, width = query.shape
    output = torch.zeros(batch, length, heads, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // key.shape[1])
            for t in range(length):
                scores = (key[b, g].double() @ query[b, h, t].double()) / width**0.5
                if mask is not None:
                    scores[~mask[min(b, len(mask) - 1), 0, t]] = -torch.inf
                elif length > 1:
                    scores[t + 1 :] = -torch.inf
                output[b, t, h] = scores.softmax(-1) @ value[b, g].double()
    return output


def states(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    cached = 7 if length == 1 else length
    query = torch.randn(2, 6, length, 8, generator=generator)
    key, value = (torch.randn(2, 2, cached, 8, generator=generator) for _ in range(2))
    return query, key, value


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7])
def test_grouped_is_attention(length: int, masked: bool, compiled: bool) -> None:
    query, key, value = states(length)
    mask = torch.ones(2, 1, length, 7, dtype=torch.bool).tril(2) if masked else None
    run: Any = torch.compile(grouped_attention, backend="eager") if compiled else grouped_attention
    output, weights = run(Module(), query, key, value, mask, scaling=8**-0.5)
    assert weights is None
    torch.testing.assert_close(output.double(), loop(query, key, value, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, torch.bool, torch.float32])
def test_grouped_adds_the_bias_of_each_query_head(mask: torch.dtype | None) -> None:
    query, key, value = states(1)
    generator = torch.Generator().manual_seed(9)
    bias = torch.randn(1, 6, 1, 7, generator=generator)
    seen = torch.ones(2, 1, 1, 7, dtype=torch.bool).tril(2)
    given = None if mask is None else seen if mask == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, -1e30)
    output, _ = grouped_attention(Module(), query, key, value, given, scaling=1.0, position_bias=bias)
    expected = torch.zeros(2, 1, 6, 8)
    for b in range(2):
        for h in range(6):
            scores = key[b, h // 3] @ query[b, h, 0] + bias[0, h, 0]
            scores = scores if mask is None else scores.masked_fill(~seen[b, 0, 0], -torch.inf)
            expected[b, 0, h] = scores.softmax(-1) @ value[b, h // 3]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def count_repeats(monkeypatch: pytest.MonkeyPatch, run: Any, masked: bool) -> int:
    """Return how often `run` writes KV heads out when it decodes a token in compiled code."""
    seen = 0
    repeat = sdpa_attention.repeat_kv

    def counted(states: torch.Tensor, times: int) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return repeat(states, times)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", counted)
    monkeypatch.setattr(sdpa_attention, "is_torchdynamo_compiling", lambda: True)
    query, key, value = states(1)
    run(Module(), query, key, value, torch.ones(2, 1, 1, 7, dtype=torch.bool) if masked else None, scaling=0.3)
    return seen


@pytest.mark.parametrize("masked", [False, True])
def test_only_sdpa_with_a_mask_repeats_heads_in_compiled_code(monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    assert count_repeats(monkeypatch, grouped_attention, masked) == 0
    repeats = count_repeats(monkeypatch, sdpa_attention.sdpa_attention_forward, masked)
    assert (repeats > 0) == repeats_heads("sdpa", masked=masked, compiled=True) == masked


def test_who_repeats_heads() -> None:
    assert repeats_heads("eager", masked=False, compiled=False)
    assert not repeats_heads("sdpa", masked=True, compiled=False)
    assert not repeats_heads("grouped", masked=True, compiled=True)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("static", [False, True])
def test_every_implementation_gives_the_same_logits(model_type: str, static: bool) -> None:
    model: Any = tiny_model(tiny_config(model_type, num_key_value_heads=2))
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(5))
    logits = {}
    for name in ("eager", "sdpa", attention.GROUPED):
        assert use_attention(model, name) == own(model) == name
        cache: Any = StaticCache(config=model.config, max_cache_len=16) if static else DynamicCache(config=model.config)
        model(ids[:, :11], past_key_values=cache, use_cache=True)
        logits[name] = model(ids[:, 11:], past_key_values=cache, use_cache=True).logits
    for name in ("sdpa", attention.GROUPED):
        torch.testing.assert_close(logits[name], logits["eager"], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("model_type", ["t5", "umt5", "bart", "marian"])
def test_every_implementation_writes_the_same_behind_an_encoder(
    model_type: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(model_type)
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**config.to_dict(), "architectures": [family(model_type).architecture]}))
    _, model = find_subjects(BenchOptions(shape=str(path), groups=2)).load(seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    batch = EncoderDecoderEngine(model, 1).start(2, Filled(6, 9), kind, 4)
    ids, known = batch._ids_BT, batch._inputs(batch._ids_BT)
    logits = {}
    run: Any = model
    for name in ("eager", "sdpa", attention.GROUPED):
        assert use_attention(model, name) == own(model) == name
        inputs = copy.deepcopy(known) | {"decoder_input_ids": ids[:, -1:]}
        if name == attention.GROUPED:
            monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: pytest.fail("falls back"))
        inputs.pop("decoder_attention_mask")
        with torch.no_grad():
            logits[name] = run(**inputs, use_cache=True).logits
    for name in ("sdpa", attention.GROUPED):
        torch.testing.assert_close(logits[name], logits["eager"], atol=1e-4, rtol=1e-4)


def test_an_implementation_that_is_not_there_is_refused() -> None:
    model = tiny_model(tiny_config("llama"))
    with pytest.raises(TimingError, match="cannot use --attention flash_attention_2"):
        use_attention(model, "flash_attention_2")


@pytest.mark.parametrize(("name", "why"), [("sdpa", "does not support"), (attention.GROUPED, "softcap")])
def test_what_an_implementation_cannot_compute_is_refused_before_it_is_timed(name: str, why: str) -> None:
    model = tiny_model(tiny_config("gemma2", num_key_value_heads=2))
    with pytest.raises(TimingError, match=f"Gemma2ForCausalLM cannot use --attention {name}: .*{why}"):
        use_attention(model, name)


def test_nothing_is_changed_where_nothing_is_asked() -> None:
    model = tiny_model(tiny_config("llama"))
    before = own(model)
    assert use_attention(model, None) == before == "sdpa"


@torch.no_grad()
def test_absorbed_is_latent_attention_with_and_without_a_cache() -> None:
    model = tiny_model(tiny_config("deepseek_v3", first_k_dense_replace=2))
    ids = torch.arange(5, 17)[None]
    wanted = model(ids).logits
    assert use_attention(model, "absorbed") == "absorbed"
    cache = DynamicCache(config=model.config)
    assert torch.allclose(model(ids).logits, wanted, atol=1e-5)
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([7, 4, 1], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), wanted, atol=1e-5)
    assert cache.layers[0].keys.shape[1] == 1


@torch.no_grad()
def test_absorbed_is_sdpa_where_there_is_no_latent() -> None:
    model = tiny_model(tiny_config("llama", num_key_value_heads=2))
    ids = torch.arange(5, 17)[None]
    wanted = model(ids).logits
    assert use_attention(model, "absorbed") == "absorbed"
    assert torch.allclose(model(ids).logits, wanted, atol=1e-5)


def test_a_shape_may_become_a_latent() -> None:
    subjects = find_subjects(BenchOptions(shape="llama-2-7b", latent=512, rope_width=64, device="cpu"))
    before, after = (one.model.cached[0].numbers() for one in subjects.both)
    assert (before, after) == (8192, 576)
    assert subjects.converted.name == "llama-2-7b, latent 512 and rotary key 64"
    for wrong in ({"latent": 512}, {"groups": 4, "latent": 512, "rope_width": 64}, {"rope_width": 64, "groups": 4}, {}):
        with pytest.raises(TimingError, match="--shape needs"):
            find_subjects(BenchOptions(shape="llama-2-7b", device="cpu", **wrong))
