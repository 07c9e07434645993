"""The contract of `convert`, family by family: the result is the source's own class with shared KV heads.

For every case of `cases.py` and every G: the files load strictly, the changed tensors are the means and nothing else
changed, the logits and the greedy continuation are those of the oracle (`oracle.repeated_source`), the measured cache
is what the formula says and shrinks by exactly what was asked, and config.json differs only where it says how many KV
heads there are.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mha2gqa.families import counts
from mha2gqa.families.cache import CacheLayer, cache_bytes
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.kv_heads import possible_groups
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert

from .cases import CASES, HOSTED, REFUSED, SHIPPED, UNBUILDABLE, Case
from .oracle import (
    CachedLayer,
    cached_layers,
    greedy,
    input_ids,
    load_strict,
    logits,
    pooled,
    read_config,
    read_tensors,
    repeated_source,
)
from .tiny import save_tiny

FORMER_KEYS = {*counts.FORMER_KEYS}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied again: hundreds of checkpoints are written here."""
    torch.set_num_threads(1)
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_every_causal_model_type_is_converted_or_refused() -> None:
    converted = {case.model_type for case in CASES}
    rewritten = HOSTED | SHIPPED
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= converted | rewritten | REFUSED.keys() | UNBUILDABLE.keys()
    assert not converted & (rewritten | REFUSED.keys())
    assert not rewritten & REFUSED.keys()
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_result_is_the_source_with_shared_heads(case: Case, workspace: Path) -> None:
    source = workspace / "source"
    original = save_tiny(case.model_type, source, **case.overrides)
    answer, cache = logits(original, case), cached_layers(original, case)
    before = read_tensors(source)
    configs = [module.config for module in original.modules() if isinstance(module, PreTrainedModel)]
    kernels = [(config, config._attn_implementation) for config in configs]
    formula: list[CacheLayer] = []
    for groups in case.groups:
        converted = workspace / f"groups-{groups}"
        convert(ConvertOptions(model=str(source), groups=groups, output=converted))
        if not formula:
            model = Architecture(read_config(source))
            formula = model.cached
            assert not case.caches or possible_groups(model.counts)[0] == case.groups[-1]
        assert_config_says(source, converted, case, groups)
        after = read_tensors(converted)
        assert_tensors_are_means(before, after, case, groups)
        if groups < case.source_heads:
            oracle = repeated_source(original, source, before, after, case, groups)
            result = load_strict(converted, case)
            assert_cache_shrinks(cache, cached_layers(result, case), case, groups, formula)
            expected = logits(oracle, case)
            assert (answer - expected).abs().max() > 1e-4, "the conversion changed nothing"
            assert_same_answers(oracle, expected, result, case)
            for config, kernel in kernels:
                config._attn_implementation_internal = kernel
    if groups < case.source_heads and (layers := cached_layers(result, case)):
        assert nbytes(layers) == expected_bytes(case, Architecture(read_config(converted)).cached, None)


def assert_config_says(source: Path, converted: Path, case: Case, groups: int) -> None:
    before, after = (dict(_leaves(read_config(path))) for path in (source, converted))
    expected = {path: value for path, value in case.counts(groups).items() if before[path] != value}
    changed = {path: after.get(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    for path in [path for path in changed if FORMER_KEYS & {*path}]:  # what `rope_parameters` says, once more
        key = next(number for number, part in enumerate(path) if part in FORMER_KEYS)
        of = path[key + 1 :] or path[key:]
        assert changed.pop(path) == after[(*path[:key], "rope_parameters", *of)]
    assert expected == {path: value for path, value in changed.items() if path not in case.may_change}


def assert_tensors_are_means(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], case: Case, groups: int
) -> None:
    expected = pooled(before, after, case, groups)
    assert after.keys() == expected.keys()
    for name, tensor in after.items():
        if name in before and _bytes_equal(expected[name], before[name]):
            assert _bytes_equal(tensor, before[name]), f"{name} should not change"
        else:
            torch.testing.assert_close(
                tensor, expected[name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


def assert_cache_shrinks(
    before: list[CachedLayer] | None,
    after: list[CachedLayer] | None,
    case: Case,
    groups: int,
    formula: list[CacheLayer],
) -> None:
    assert (before is not None) == (after is not None) == case.caches
    if before is not None and after is not None:
        assert nbytes(before) == expected_bytes(case, formula, None)
        assert nbytes(before) > nbytes(after) == expected_bytes(case, formula, groups)
        expected = [layer.nbytes * case.kept(layer.heads, groups) // layer.heads for layer in before]
        assert [layer.nbytes for layer in after] == expected


def nbytes(layers: list[CachedLayer]) -> int:
    """Measured bytes per sequence."""
    return sum(layer.nbytes for layer in layers) // len(input_ids())


MERGED = {"t5gemma2"}
"""Decoders that project the encoder's tokens with the K and V of their self-attention, into a second cache."""


def kept(case: Case, layer: CacheLayer) -> int:
    """Tokens of `oracle.inputs` that a layer caches; transformers keeps one less than a window between steps."""
    if layer.cross:
        return 9
    fed = 12 if case.run in ("causal", "streamed") else 7
    return min(fed, layer.window - 1) if layer.window else fed


def expected_bytes(case: Case, layers: list[CacheLayer], groups: int | None) -> int:
    """Bytes per sequence, by the formula."""
    own = sum(cache_bytes([layer], 4, kept(case, layer), groups) for layer in layers)
    encoders = [layer for layer in layers if layer.cross or case.model_type in MERGED]
    return own + sum(layer.numbers(groups) * 9 * 4 for layer in encoders)


def assert_same_answers(oracle: PreTrainedModel, expected: torch.Tensor, result: PreTrainedModel, case: Case) -> None:
    assert_same_logits(expected, result, case)
    if case.generates:
        assert torch.equal(greedy(result, case), greedy(oracle, case))
    if case.eager:
        for model in (oracle, result):
            model.set_attn_implementation("eager")
        assert_same_logits(logits(oracle, case), result, case)


def assert_same_logits(expected: torch.Tensor, result: PreTrainedModel, case: Case) -> None:
    tolerance = 1e-5 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(logits(result, case), expected, rtol=0, atol=tolerance)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, nested in value.items():
            yield from _leaves(nested, (*path, key))
    else:
        yield path, value


def _bytes_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
