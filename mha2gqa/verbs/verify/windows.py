"""What `verify` asks of a window: contexts that reach beyond it, the entries that are kept, and the same outputs.

Outputs are held against a model without windows whose attention gets a banded mask by hooks, so that none of
transformers' own code for windows is in it: the original, or where KV heads changed as well the converted model itself
with every token in reach.

Legend: T tokens, W tokens of the window.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from mha2gqa.errors import TextError
from mha2gqa.hosts.windows import CLASSES
from mha2gqa.model.feed import attempt, inputs
from mha2gqa.model.load import DEFAULT_CONTEXT
from mha2gqa.record.pair import Pair
from mha2gqa.refine.student import build_student
from mha2gqa.targets.window import Window, windows
from mha2gqa.verbs.verify.levels import Check
from mha2gqa.verbs.verify.options import VerifyOptions

_BEYOND = 16
"""Tokens that are read beyond a window."""
_EAGER_TOKENS = 1024
"""Tokens up to which attention is computed as written, to the last bit; its scores take T x T numbers a head."""


def has_window(pair: Pair) -> bool:
    """Return whether the conversion has set a window."""
    return "window" in pair.conversion.targets


def _reach(pair: Pair) -> list[int | None]:
    """Return the window that each layer must have, by the record and the original."""
    asked = Window.recorded(pair.conversion.options)
    before = windows(pair.original.architecture)
    return [asked.tokens if asked.has(number) else window for number, window in enumerate(before)]


def beyond_windows(pair: Pair, options: VerifyOptions) -> VerifyOptions:
    """Return the options with blocks of text that reach beyond the window, as far as the model reads.

    Raises:
        TextError: Shorter ones were asked for.
    """
    if not has_window(pair):
        return options
    window = Window.recorded(pair.conversion.options).tokens
    most = int(getattr(pair.result.text_config, "max_position_embeddings", 0) or 2 * window)
    if options.context is None:
        return replace(options, context=min(most, max(DEFAULT_CONTEXT, 2 * window)))
    if options.context <= window < most:
        raise TextError(
            f"--context {options.context} ends within the window of {window} tokens, where nothing can be lost",
            expected=f"{window + 1} to {most} tokens",
        )
    return options


@torch.inference_mode()
def window_checks(pair: Pair, original: PreTrainedModel, converted: PreTrainedModel, tolerance: float) -> list[Check]:
    """Run past the window, and hold what is kept and what comes out against what must.

    Args:
        pair: The two.
        original: The original, loaded.
        converted: The converted model, loaded.
        tolerance: Of a logit, as a fraction of the largest.
    """
    reach = _reach(pair)
    length = max(window for window in reach if window) + _BEYOND
    ids_BT = torch.arange(length)[None] * 7919 % pair.result.vocabulary
    return [*_entries(converted, ids_BT, reach), _exactness(pair, original, converted, ids_BT, tolerance)]


def _entries(model: PreTrainedModel, ids_BT: torch.Tensor, reach: list[int | None]) -> Iterator[Check]:
    """Read past the window, and count what each kind of cache has kept: W - 1 or W entries."""
    length = ids_BT.shape[1]
    caches: dict[str, Cache] = {
        "dynamic": DynamicCache(config=model.config),
        "static": StaticCache(config=model.config, max_cache_len=length),
    }
    for less, (name, store) in zip((1, 0), caches.items(), strict=True):

        def run(store: Any = store) -> list[int]:
            model(**inputs(model, ids_BT) | {"use_cache": True, "past_key_values": store})
            return [layer.keys.shape[2] for layer in store.layers]

        kept, wanted = attempt(run), [window - less if window else length for window in reach]
        told = kept if isinstance(kept, str) else _counted(kept)
        detail = f"{told} entries a layer after {length:,} tokens, {_counted(wanted)} by formula"
        yield Check(name=f"window, {name} cache", passed=kept == wanted, detail=detail)


def _counted(entries: list[int]) -> str:
    numbers = {number: entries.count(number) for number in dict.fromkeys(entries)}
    return ", ".join(f"{number:,} in {count}" for number, count in numbers.items())


def _exactness(
    pair: Pair, original: PreTrainedModel, converted: PreTrainedModel, ids_BT: torch.Tensor, tolerance: float
) -> Check:
    is_alone = pair.conversion.targets == ("window",)
    reference = original if is_alone else _unbounded(converted, pair.result.model_type)
    names = [*pair.original.origin.compared(pair.result.attention_modules).items()]
    modules = [old if is_alone else new for new, old in names]
    reach = dict(zip(modules, _reach(pair), strict=True))
    found_BTV, banded_BTV = _as_written(converted, ids_BT), _as_written(reference, ids_BT, reach)
    difference = float((found_BTV - banded_BTV).abs().max()) / float(banded_BTV.abs().max())
    what = "the original" if is_alone else "the same heads with every token in reach,"
    detail = f"{what} under a banded mask: largest difference of a logit {difference:.1e} of the largest"
    return Check(name="window, outputs", passed=difference <= tolerance, detail=detail, tolerance=tolerance)


def _unbounded(model: PreTrainedModel, model_type: str) -> PreTrainedModel:
    """Return a model around the same weights, in the same class, whose layers see every token."""
    config: Any = copy.deepcopy(model.config)
    windowed = CLASSES[model_type]
    off = [not windowed.rotates_all] * config.num_hidden_layers
    for key, value in windowed.keys(config, config.max_position_embeddings, off).items():
        setattr(config, key, value)
    return build_student(model, config, [])


def _as_written(
    model: PreTrainedModel, ids_BT: torch.Tensor, reach: Mapping[str, int | None] | None = None
) -> torch.Tensor:
    """Return the logits by attention as it is written down; with `reach`, module -> W, under a banded mask."""
    length, before = ids_BT.shape[1], str(model.config._attn_implementation)
    steps_T = torch.arange(length, device=model.device)
    distance_TT = steps_T[:, None] - steps_T[None]
    hooks = []
    for name, window in (reach or {}).items():
        seen_TT = (distance_TT >= 0) & (distance_TT < (window or length))
        mask = torch.zeros(1, 1, length, length, dtype=model.dtype, device=model.device)
        mask.masked_fill_(~seen_TT, torch.finfo(model.dtype).min)
        hooks.append(model.get_submodule(name).register_forward_pre_hook(_masked(mask), with_kwargs=True))
    if length <= _EAGER_TOKENS:
        model.set_attn_implementation("eager")
    try:
        logits_BTV: torch.Tensor = model(**inputs(model, ids_BT)).logits
        return logits_BTV
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def _masked(mask: torch.Tensor) -> Any:
    return lambda module, args, kwargs: (args, kwargs | {"attention_mask": mask})
