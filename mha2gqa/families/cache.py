"""What the KV cache of a model holds, by formula: numbers a token, layer by layer.

The rows of the K and V projections are the numbers that a token adds to the cache; `changes.py`
knows these rows for every family. Layers that attend to an encoder cache its tokens instead, layers
with a sliding window no more tokens than fit into it, and latent attention (MLA) one vector.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from mha2gqa.families.blueprint import Blueprint
from mha2gqa.families.changes import Change
from mha2gqa.families.counts import Count, decoders
from mha2gqa.families.names import CROSS_ATTENTION, WINDOWS

Dependent: TypeAlias = Iterable[tuple[Count, Change]]
"""Numbers of KV heads, each with tensors of the module tree that depend on it."""


@dataclass(frozen=True)
class CacheLayer:
    """The cache of one attention layer."""

    module: str
    kv_heads: int
    """KV heads that the cache holds; 0 for a latent vector, which no G changes."""
    width: int
    """Numbers a token and KV head (keys and values together), or of the latent vector."""
    window: int | None
    """Tokens that a sliding window keeps; None keeps all."""
    cross: bool
    """The tokens are an encoder's."""
    counted: int
    """KV heads that the config counts for the layer; `kv_heads` is a multiple of it."""
    kept: bool = True
    """False where all tokens are read at once, in an encoder: nothing is cached."""

    def numbers(self, groups: int | None = None) -> int:
        """Return the numbers that one token adds, with at most `groups` KV heads."""
        fewer = self.counted // min(self.counted, groups) if groups else 1
        return (self.kv_heads // fewer or 1) * self.width

    def tokens(self, context: int) -> int:
        """Return how many of `context` tokens the layer keeps."""
        return min(context, self.window or context)


def cache_layers(plan: Blueprint, dependent: Dependent) -> list[CacheLayer]:
    """Return the layers that have a KV cache, in the order of the module tree.

    Args:
        plan: The blueprint.
        dependent: What depends on each of its numbers of KV heads.
    """
    found: dict[str, CacheLayer] = {}
    for count, change in dependent:
        if change.rule.cached:
            _add(found, plan, count, change)
    return [found[module] for module in plan.modules if module in found]


def cache_bytes(layers: list[CacheLayer], itemsize: int, context: int = 1, groups: int | None = None) -> int:
    """Return the bytes of cache of one sequence of `context` tokens."""
    own = (layer for layer in layers if layer.kept and not layer.cross)
    return sum(layer.numbers(groups) * layer.tokens(context) for layer in own) * itemsize


def cross_cache_bytes(layers: list[CacheLayer], itemsize: int, groups: int | None = None) -> int:
    """Return the bytes of cache of cross-attention that one token of an encoder takes."""
    return sum(layer.numbers(groups) for layer in layers if layer.cross) * itemsize


def cross_projections(dependent: Dependent) -> frozenset[str]:
    """Return the tensors, as named in the module tree, that compute the keys and values of cross-attention."""
    changes = [change for _, change in dependent if change.rule.cached]
    there = ((name, change.module(name)) for change in changes for name, (shape, _) in change.names.items() if shape)
    return frozenset(name for name, module in there if is_cross_attention(module))


def is_cross_attention(module: str) -> bool:
    """Return whether an attention module reads the keys and values of another sequence, by its name."""
    return any(word in module.lower() for word in CROSS_ATTENTION)


def another(count: Count) -> int:
    """Return a number of heads that differs from the config's, so that the difference shows."""
    family, queries = count.decoder.family, count.decoder.query_heads
    least = 2 if family.groups == "even" else 1
    return queries if count.heads == least else least


def _add(found: dict[str, CacheLayer], plan: Blueprint, count: Count, change: Change) -> None:
    for name, (shape, _) in change.names.items():
        module = change.module(name)
        attention = plan.attention(module)
        if shape is None or name.endswith("bias") or attention.shares:
            continue
        runs = change.layouts[0](shape[0], change.before)
        heads = len({run.head for run in runs if run.part != "q"})
        rows = sum(run.count for run in runs if run.part != "q")
        before = found.get(module)
        # Gemma4 layers without v_proj cache their keys a second time, as values.
        times = 2 if attention.keys_are_values else 1
        width = times * rows // heads + (before.width if before else 0)
        cross = is_cross_attention(module)
        window = _window(count.decoder.config, attention.layer)
        found[module] = CacheLayer(module, heads, width, window, cross, count.heads, _is_kept(count))


def _is_kept(count: Count) -> bool:
    is_encoder = count.decoder.family.encoder and not getattr(count.decoder.config, "is_decoder", False)
    return count.part != "encoder" and not is_encoder


def _window(config: Any, layer: int | None) -> int | None:
    """Return the window by the kind of the layer, as transformers' own cache does; without kinds all have it."""
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer is not None else "sliding_attention"
    window = getattr(config, WINDOWS[kind], None) if kind in WINDOWS else None
    return window if isinstance(window, int) else None


def latent_layers(plan: Blueprint) -> list[CacheLayer]:
    """Return one layer per MLA module: the compressed K/V and the shared rotary key of each token."""
    config = next((one.config for one in decoders(plan) if one.family.latent), None)
    if config is None:
        return []
    width = math.prod([config.kv_lora_rank]) + config.qk_rope_head_dim
    compressing = ".kv_a_proj_with_mqa.weight"
    modules = [name.removesuffix(compressing) for name in plan.module_shapes if name.endswith(compressing)]
    return [CacheLayer(module, 0, width, None, False, 1) for module in modules]
