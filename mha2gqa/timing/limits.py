"""What bytes alone say: how much a decode step must move, how much faster fewer KV heads can make it, what fits.

A step reads every weight once and the whole cache of the batch; nothing that a kernel does can make it move less.
Of a mixture of experts all weights are counted, which is what a large batch touches. Counted on the meta device:
no weights are needed. Times are measured elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from mha2gqa.families.blueprint import Blueprint, ConfigJson, blueprint
from mha2gqa.families.cache import CacheLayer, cache_bytes, cache_layers
from mha2gqa.families.counts import decoders, find_counts
from mha2gqa.hosts import config_with_heads
from mha2gqa.timing.results import Decode

WORTH_HAVING = 1.25
"""Ratio of the bytes below which the cache is too small a part of a step for fewer KV heads to matter."""
NEAR = 0.8
"""Share of the ratio of the bytes that a kernel which is bound by memory reaches."""


@dataclass(frozen=True)
class Costs:
    """Bytes of one model."""

    parameters: int
    weights: int
    read: int
    """Weights that a step reads: all but an embedding table, of which it needs a row a sequence."""
    layers: list[CacheLayer]
    itemsize: int

    def cache(self, context: int) -> int:
        """Return the bytes of cache of one sequence of `context` tokens."""
        return cache_bytes(self.layers, self.itemsize, context)

    def step(self, batch: int, context: int) -> int:
        """Return the bytes that a decode step must move."""
        return self.read + batch * self.cache(context)

    def largest_batch(self, context: int, memory: int) -> int:
        """Return how many sequences of `context` tokens fit into `memory` bytes beside the weights."""
        return max(0, memory - self.weights) // max(1, self.cache(context))


def costs(config_json: ConfigJson, itemsize: int) -> Costs:
    """Return the bytes of the model of a config, with `itemsize` bytes a number."""
    plan = blueprint(config_json)
    total = sum(parameter.numel() for parameter in plan.model.parameters())
    return Costs(
        parameters=total,
        weights=total * itemsize,
        read=(total - _lookup(plan.model)) * itemsize,
        layers=_layers(config_json, plan),
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


def _lookup(model: PreTrainedModel) -> int:
    """Return the numbers of an embedding table that is only looked up, not multiplied with."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = getattr(table, "weight", None)
    if weight is None or (head is not None and getattr(head, "weight", None) is weight):
        return 0
    return int(weight.numel())


def _layers(config_json: ConfigJson, plan: Blueprint) -> list[CacheLayer]:
    latent = any(part.family.latent for part in decoders(plan))
    counted = config_with_heads(config_json)
    own = blueprint(counted)
    return cache_layers(counted, own, [] if latent else find_counts(counted, own))
