"""The load level of `verify`: the converted checkpoint loads strictly and runs as its original does.

What the original's own class cannot do is not asked of the converted checkpoint, and tolerances are
those of rounding in the dtype of the run, or what the original itself shows. `Models` holds both for the other levels.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.families.cache import CacheLayer, cache_bytes, cross_cache_bytes
from mha2gqa.files.reader import read_checkpoint
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.devices import placement
from mha2gqa.model.feed import attempt
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import are_of_head, drawn, load_unchecked
from mha2gqa.record.pair import Pair
from mha2gqa.verbs.verify.behaviour import NEW_TOKENS, Behaviour, Observed, observe
from mha2gqa.verbs.verify.judge import FORWARD, NOISE
from mha2gqa.verbs.verify.levels import CacheUse, Check, Finding, LoadLevel
from mha2gqa.verbs.verify.windows import has_window, window_checks

_BLOCKS, _TOKENS = 2, 24
_LEAST_VOCABULARY = 96
"""Of a class that does not say."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Dtype -> difference of two ways to compute a logit that rounding explains, as a fraction of the largest."""
_AS_ORIGINAL = 4
"""How many times the original's own difference the converted checkpoint's may be."""
_FIRST_CONTEXT, _LAST_CONTEXT = 256, 32_768


class Models:
    """Both models of a pair."""

    def __init__(self, pair: Pair, *, dtype: str | None, device: str | None) -> None:
        """Decide where they are run; nothing is loaded yet.

        Raises:
            DeviceError: The device is not there.
        """
        self.pair = pair
        self._place = placement(pair.original.directory, dtype=dtype, device=device, models=2)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Config of the original, without its weights."""
        return self.pair.original.architecture.config

    @cached_property
    def _original(self) -> tuple[PreTrainedModel, list[str]]:
        return load_unchecked(self.pair.original.directory, self._place)

    @cached_property
    def _converted(self) -> tuple[PreTrainedModel, list[str]] | str:
        return attempt(lambda: load_unchecked(self.pair.converted, self._place))

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """Parameters that the original's files lack, too, and that each load draws at random."""
        return drawn(*self._original)

    @property
    def is_cut(self) -> bool:
        """Whether the head was drawn at random, so that both are run without it."""
        return bool(self.drawn) and are_of_head(self._original[0], self.drawn)

    @property
    def is_random(self) -> bool:
        """Whether a part of the body was drawn at random, so that nothing that they give can be compared."""
        return bool(self.drawn) and not self.is_cut

    @property
    def original(self) -> PreTrainedModel:
        """The original; keys that its own class does not know are left out, as transformers does."""
        return self._without_head(self._original[0])

    @property
    def converted(self) -> PreTrainedModel | None:
        """The converted checkpoint; None when it does not load strictly."""
        return None if isinstance(self._converted, str) or self.problems else self._without_head(self._converted[0])

    def _without_head(self, model: PreTrainedModel) -> PreTrainedModel:
        body: Any = model.base_model if self.is_cut else model
        without: PreTrainedModel = body
        return without

    @property
    def modules(self) -> dict[str, str]:
        """Attention modules that both have: name in the converted model -> name in the original."""
        original = self.pair.original
        names = original.origin.compared(original.architecture.attention_modules)
        if not self.is_cut:
            return names
        body = f"{self._original[0].base_model_prefix}."
        return {one.removeprefix(body): other.removeprefix(body) for one, other in names.items()}

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong with the keys of the converted checkpoint and not with the original's: `missing <name>`, ..."""
        if isinstance(self._converted, str):
            return [self._converted]
        if not read_checkpoint(self.pair.converted).has_plain_index:
            return ["index without `metadata`, which transformers does not read"]
        return [problem for problem in self._converted[1] if problem not in self._original[1]]

    @cached_property
    def lacks(self) -> list[str]:
        """What is wrong with the keys of the original."""
        return self._original[1]

    @property
    def agree(self) -> bool:
        """Whether the converted checkpoint lacks what the original lacks."""
        return not isinstance(self._converted, str) and set(self._original[1]) <= set(self._converted[1])

    @property
    def dtype(self) -> str:
        """In which they are run."""
        return str(self.original.dtype).removeprefix("torch.")


def check_loading(models: Models, seed: int) -> LoadLevel:
    """Load both models and run them on a few random tokens.

    Raises:
        CheckpointError: The original cannot be loaded.
    """
    started = time.monotonic()
    run = _NOT_RUN if models.is_random else _run_both(models, seed)
    checks = [_strict(models), *run.checks]
    return LoadLevel(
        checks=tuple(checks),
        original_cache=run.original_cache,
        converted_cache=run.converted_cache,
        dtype=models.dtype,
        device=models.original.device.type,
        seconds=time.monotonic() - started,
        findings=tuple(_findings(models, checks)),
    )


@dataclass(frozen=True)
class _Run:
    """What running both has shown."""

    checks: tuple[Check, ...]
    original_cache: CacheUse | None
    converted_cache: CacheUse | None


_NOT_RUN = _Run((), None, None)


def _run_both(models: Models, seed: int) -> _Run:
    before, original, converted = models.pair.original.architecture, models.original, models.converted
    layers, after = before.cached, models.pair.result.cached
    ids_BT = random_tokens(original, before.config_json, seed, _TOKENS)
    cached = min([_TOKENS, *(layer.window - 1 for layer in (*layers, *after) if layer.window)])
    seen = observe(original, ids_BT, cached)
    used = _cache_use(layers, original, seen, before)
    if converted is None:
        return _Run((), used, None)
    now = observe(converted, ids_BT, cached)
    cache = _cache_use(after, converted, now, before)
    formula = [cross_cache_bytes(one, original.dtype.itemsize) for one in (layers, after)]
    checks = [*_checks(seen, now, used, cache, original)]
    if has_window(models.pair):
        checks += window_checks(models.pair, original, converted, _TOLERANCE[original.dtype])
    return _Run((*checks, *_cross_cache_check(seen.cross_cache, now.cross_cache, formula)), used, cache)


def random_tokens(model: PreTrainedModel, config_json: ConfigJson, seed: int, tokens: int) -> torch.Tensor:
    """Return blocks of as many tokens that mean nothing to the config: an image token would ask for an image."""
    size = getattr(model.config.get_text_config(decoder=True), "vocab_size", _LEAST_VOCABULARY)
    special = set(_token_ids(config_json)) | set(_token_ids(model.config.to_dict()))
    plain = torch.tensor([token for token in range(size) if token not in special])
    generator = torch.Generator().manual_seed(seed)
    return plain[torch.randint(len(plain), (_BLOCKS, tokens), generator=generator)]


def _token_ids(content: Any, key: str = "") -> Iterator[int]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _token_ids(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _token_ids(value, key)
    elif isinstance(content, int) and key.endswith(("token_id", "token_index", "token_ids")):
        yield content


def _cache_use(
    layers: list[CacheLayer], model: PreTrainedModel, seen: Behaviour, original: Architecture
) -> CacheUse | None:
    if seen.cache is None or not layers:
        return None
    most = getattr(original.text_config, "max_position_embeddings", None) or _LAST_CONTEXT
    contexts = [_FIRST_CONTEXT]
    while contexts[-1] * 2 <= max(most, 4 * _FIRST_CONTEXT):
        contexts.append(contexts[-1] * 2)
    itemsize = model.dtype.itemsize
    return CacheUse(
        formula=cache_bytes(layers, itemsize),
        measured=None if isinstance(seen.cache, str) else round(seen.cache),
        at={context: cache_bytes(layers, itemsize, context) for context in contexts},
    )


def _strict(models: Models) -> Check:
    problems, lacks = models.problems, models.lacks
    wrappers = models.pair.original.checkpoint.unwrapped
    taken_off = f"none is left over once {', '.join(wrappers)} is taken off the original's keys" if wrappers else ""
    detail = _some(problems or lacks) or taken_off or "no missing, unexpected or mismatched key"
    if not problems and lacks:
        drawn = "; transformers draws what is missing at random" if models.drawn else ""
        detail += f" in the original{', too' * models.agree}{drawn}"
    return Check(name="strict load", passed=False if problems else None if lacks else True, detail=detail)


def _some(problems: list[str]) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def _checks(
    seen: Behaviour, now: Behaviour, before: CacheUse | None, after: CacheUse | None, original: PreTrainedModel
) -> Iterator[Check]:
    kind, tolerance = kind_of(original), _TOLERANCE[original.dtype]
    name, what = (FORWARD, "tokens alone") if kind.reads_tokens else (NOISE, f"noise as its {kind.reads}")
    if isinstance(seen.forward, str):
        detail = f"not made: the original does not run on {what} ({seen.forward})"
        yield Check(name=name, passed=None, detail=detail)
        return
    detail = str(now.forward) if isinstance(now.forward, str) else "every output is finite"
    yield Check(name=name, passed=not isinstance(now.forward, str), detail=detail)
    if before is not None and before.measured is not None:
        yield _cache_check(before, after, now.cache, str(original.dtype).removeprefix("torch."))
    name = "generation with and without cache"
    yield from _agreement(
        name, seen.generation, now.generation, tolerance, f"{NEW_TOKENS} tokens, largest logit difference"
    )
    name = "chunked and one-shot prefill"
    yield from _agreement(name, seen.prefill, now.prefill, tolerance, "logit difference")


def _cache_check(before: CacheUse, after: CacheUse | None, measured: Observed, dtype: str) -> Check:
    name = "cache bytes a token"
    if after is None or after.measured is None:
        return Check(name=name, passed=False, detail=f"the converted checkpoint gives no cache ({measured})")
    passed = (before.measured, after.measured) == (before.formula, after.formula)
    sizes = f"{before.measured:,} -> {after.measured:,} measured"
    detail = f"{sizes}, {before.formula:,} -> {after.formula:,} by formula, in {dtype}"
    return Check(name=name, passed=passed, detail=detail)


def _cross_cache_check(seen: Observed, now: Observed, formula: list[int]) -> Iterator[Check]:
    """Hold what cross-attention caches of a token of the encoder against the formula, for both models."""
    if not any(formula) or not isinstance(seen, (int, float)):
        return
    measured = [round(seen), round(now) if isinstance(now, (int, float)) else now]
    sizes = " -> ".join(f"{one:,}" if isinstance(one, int) else str(one) for one in measured)
    detail = f"{sizes} measured, {formula[0]:,} -> {formula[1]:,} by formula"
    yield Check(name="cross-attention cache bytes a token read", passed=measured == formula, detail=detail)


def _agreement(name: str, seen: Observed, now: Observed, tolerance: float, what: str) -> Iterator[Check]:
    if seen is None:
        return
    if isinstance(seen, str) or seen > tolerance:
        why = seen if isinstance(seen, str) else f"its own difference is {seen:.1e} of the largest logit"
        yield Check(name=name, passed=None, detail=f"not made: the original does not do this ({why})")
    elif isinstance(now, str) or now is None:
        yield Check(name=name, passed=False, detail=f"the original does this, the converted checkpoint fails: {now}")
    else:
        detail = f"{what} {now:.1e} of the largest logit (original {seen:.1e})"
        most = max(tolerance, _AS_ORIGINAL * seen)
        yield Check(name=name, passed=now <= most, detail=detail, tolerance=most)


def _findings(models: Models, checks: list[Check]) -> Iterator[Finding]:
    for problem in models.problems:
        kind, _, key = problem.partition(" ")
        is_key = kind in ("missing", "unexpected", "mismatched")
        guilty = key if is_key else str(models.pair.converted)
        yield Finding(level="load", guilty=guilty, problem=f"is {kind}" if is_key else problem)
    for check in checks[1:]:
        if check.passed is False:
            yield Finding(level="load", guilty=check.name, problem=check.detail)
