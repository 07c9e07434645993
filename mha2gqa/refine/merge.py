"""Chooses the groups of a layer and merges its heads: tensors in, tensors out.

The same for weights that come from a file and for those of a model in memory, with statistics or without.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mha2gqa.families.attention import AttentionLayer, gather, scatter
from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.heads.grouping import Groups, contiguous, similar
from mha2gqa.methods import find_method, layer_method
from mha2gqa.methods.aligned.loss import group_loss


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged layer, and what it was made of."""

    layer: AttentionLayer
    source: Mapping[str, torch.Tensor]
    """The original's tensors, without the module's own name."""
    statistics: Statistics | None
    groups: Groups
    heads: AttentionHeads
    """Merged."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that changed, without the module's own name."""
        return self.with_heads(self.heads)

    def with_heads(self, heads: AttentionHeads) -> dict[str, torch.Tensor]:
        """Return the same with other heads in the place of the merged ones."""
        return scatter(self.layer, heads, self.groups, self.source)


@dataclass(frozen=True, kw_only=True)
class LayerMerge:
    """How layers are merged."""

    method: str
    grouping: str
    seed: int

    def __call__(
        self, layer: AttentionLayer, tensors: Mapping[str, torch.Tensor], statistics: Statistics | None
    ) -> Merged:
        """Merge a layer.

        Args:
            layer: The layer.
            tensors: The source's tensors, without the module's own name.
            statistics: Of its inputs, where they are known.
        """
        heads = gather(layer, tensors)
        if find_method(self.method).streams:  # a pooling moves nothing, so groups are compared as they are
            heads = replace(heads, keys="fixed", values="fixed")
        groups = self._groups(layer, heads, statistics)
        merged = layer_method(self.method, self.seed)(heads, groups, statistics)
        return Merged(layer=layer, source=tensors, statistics=statistics, groups=groups, heads=merged)

    def _groups(self, layer: AttentionLayer, heads: AttentionHeads, statistics: Statistics | None) -> Groups:
        if self.grouping == "contiguous" or not layer.sortable:
            return contiguous(layer.kv_heads, layer.groups)
        return similar(layer.kv_heads, layer.groups, group_loss(heads, statistics), self.seed)
