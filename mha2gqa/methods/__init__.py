"""How the KV heads of a group become one. NEW METHOD = ONE FILE + ONE LINE.

Two kinds, both pure functions that see no file, family or layout:
a pooling `(heads_RN, generator) -> head_N` works on one quantity (key or value weights, a bias, a norm gain)
of one group, so it streams; a layer method `(AttentionHeads, groups, statistics) -> AttentionHeads` works on
a whole layer, and may change its queries and outputs with it. `layer_method` gives either kind as the second.

Nothing heavy is imported here: the command line lists these names.

Legend: R heads of a group, N numbers of one head.
"""

from collections.abc import Mapping, MutableMapping
from importlib import import_module

from mha2gqa.methods.first import first
from mha2gqa.methods.kinds import LayerMethod, Pooling
from mha2gqa.methods.mean import mean
from mha2gqa.methods.random import random

POOLINGS: Mapping[str, Pooling] = {
    "mean": mean,
    "first": first,
    "random": random,
}
LAYER_METHODS: MutableMapping[str, str] = {
    "aligned": "mha2gqa.methods.aligned.method:aligned",
}
"""Name -> where the function is; they are imported when they are used. A program may add its own."""

METHODS = (*POOLINGS, *LAYER_METHODS)


def layer_method(name: str, seed: int) -> LayerMethod:
    """Return a method as a function of a whole layer."""
    if name in POOLINGS:
        from mha2gqa.methods.pooled import pooled

        return pooled(POOLINGS[name], seed)
    module, _, function = LAYER_METHODS[name].partition(":")
    found: LayerMethod = getattr(import_module(module), function)
    return found
