"""How the KV heads of a group become one. NEW METHOD = ONE FILE + ONE LINE.

A method is a pure function `(heads_RN, generator) -> head_N` on one quantity (key or value weights,
a bias, a norm gain) of one group: R heads of N numbers, in fp32 for 16-bit sources and in fp64 for the
others, so that the mean of equal heads is that head to the last bit. It never sees a file, a family or
a layout. Nothing heavy is imported here: the command line lists these names.

Legend: R heads of a group, N numbers of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from mha2gqa.merging.first import first
from mha2gqa.merging.mean import mean
from mha2gqa.merging.random import random

if TYPE_CHECKING:
    import torch

Method: TypeAlias = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]

METHODS: Mapping[str, Method] = {
    "mean": mean,
    "first": first,
    "random": random,
}
