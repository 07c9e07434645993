"""What bytes alone say: how much a decode step must move, how much faster fewer KV heads can make it, what fits.

A step reads every weight once and the whole cache of the batch; nothing that a kernel does can make it move less. What
has done its work before the first step is not read: an encoder, and the projections of cross-attention whose keys and
values the cache holds. Of a mixture of experts all weights are counted, which is what a large batch touches. Counted on
the meta device: no weights are needed. Times are measured elsewhere.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mha2gqa.families.cache import CacheLayer, cache_bytes, cross_cache_bytes
from mha2gqa.hosts import counted
from mha2gqa.model.architecture import Architecture
from mha2gqa.verbs.bench.outcome import Decode

WORTH_HAVING = 1.25
"""Ratio of the bytes below which the cache is too small a part of a step for fewer KV heads to matter."""
NEAR = 0.8
"""Share of the ratio of the bytes that a kernel which is bound by memory reaches."""


@dataclass(frozen=True)
class Filled:
    """Tokens that the caches of a sequence hold when decoding begins."""

    own: int
    """Of the decoder itself."""
    source: int = 0
    """That an encoder has read; 0 without one."""

    @property
    def context(self) -> int:
        """The tokens that `--context` names: a decoder's own, or those of a source."""
        return self.source or self.own

    def with_room(self, tokens: int) -> "Filled":
        """Return it with `tokens` more of the decoder; a source does not grow."""
        return replace(self, own=self.own + tokens)


@dataclass(frozen=True)
class Costs:
    """Bytes of one model."""

    parameters: int
    weights: int
    read: int
    """Weights that a step reads: not an encoder's, and of an embedding table only a few rows."""
    layers: list[CacheLayer]
    itemsize: int

    def cache(self, filled: Filled) -> int:
        """Return the bytes of cache of one sequence: the decoder's own, and that of cross-attention."""
        own = cache_bytes(self.layers, self.itemsize, filled.own)
        return own + filled.source * cross_cache_bytes(self.layers, self.itemsize)

    def step(self, batch: int, filled: Filled) -> int:
        """Return the bytes that a decode step must move."""
        return self.read + batch * self.cache(filled)

    def largest_batch(self, filled: Filled, memory: int) -> int:
        """Return how many sequences fit into `memory` bytes beside the weights."""
        return max(0, memory - self.weights) // max(1, self.cache(filled))


def costs(model: Architecture, itemsize: int) -> Costs:
    """Return the bytes of a model, with `itemsize` bytes a number."""
    with_heads = counted(model)
    total = sum(parameter.numel() for parameter in model.outline.parameters())
    return Costs(
        parameters=total,
        weights=total * itemsize,
        read=_read(model.outline, with_heads.cross_projections) * itemsize,
        layers=with_heads.cached,
        itemsize=itemsize,
    )


def largest_that_runs(runs: Callable[[int], bool], most: int) -> int:
    """Return the largest batch up to `most` for which `runs` holds, to within a sixteenth of `most`."""
    fits, fails, batch = 0, most + 1, most
    while batch > fits:
        if runs(batch):
            fits = batch
        else:
            fails = batch
        batch = (fits + fails) // 2 if fails - fits > max(1, most // 16) else fits
    return fits


def why_not_faster(row: Decode, *, original: Costs, repeats: bool, heads: int) -> str:
    """Return why a row is not nearly as much faster as its bytes allow; empty where it is, or cannot be told.

    Args:
        row: What was measured.
        original: Bytes of the original.
        repeats: Whether the attention implementation writes the KV heads out, once for each query head.
        heads: Query heads.
    """
    if row.limit < WORTH_HAVING:
        return f"the cache is {1 - original.read / row.step_bytes[0]:.0%} of the bytes of a step"
    if row.disturbed or row.ratio.median >= NEAR * row.limit:
        return ""
    if repeats:
        return f"attention repeats the KV heads to {heads} before it reads them"
    before, after = (rate / 1e9 for rate in row.rates)
    return f"not bound by the bytes: {after:.1f} GB/s of them after, {before:.1f} before"


def _read(model: PreTrainedModel, cross: Set[str]) -> int:
    """Return the numbers that a decode step reads.

    Args:
        model: The model.
        cross: Its tensors that compute the keys and values of cross-attention.
    """
    done, before = cross if model.config.is_encoder_decoder else set(), _encoder_prefix(model)
    read = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a table may be the output projection, too
        if name in done or name.startswith(before) or _is_looked_up(model, name.rpartition(".")[0]):
            continue
        read[id(parameter)] = parameter.numel()
    return sum(read.values())


def _encoder_prefix(model: Any) -> tuple[str, ...]:
    """Return how the names of an encoder's tensors begin; empty without one."""
    if not model.config.is_encoder_decoder:
        return ()
    encoder = model.get_encoder()
    return tuple(f"{name}." for name, module in model.named_modules() if module is encoder)


def _is_looked_up(model: PreTrainedModel, module: str) -> bool:
    """Return whether a module is a table of which a step needs a few rows, and not a factor of a product."""
    table = model.get_submodule(module)
    is_table = isinstance(table, nn.Embedding) or table is model.get_input_embeddings()
    return is_table and table is not model.get_output_embeddings()
