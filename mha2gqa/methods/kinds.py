"""The two kinds of methods, as types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from mha2gqa.heads.grouping import Groups

if TYPE_CHECKING:
    import torch

    from mha2gqa.heads.attention import AttentionHeads, Statistics

Pooling: TypeAlias = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]
"""`(heads_RN, generator) -> head_N`: R heads of a group, N numbers of one quantity."""

LayerMethod: TypeAlias = Callable[["AttentionHeads", Groups, "Statistics | None"], "AttentionHeads"]
"""`(heads, groups, statistics) -> heads` with one KV head per group, query heads in the order of the groups."""
