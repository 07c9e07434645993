"""Chooses the groups of a layer and merges its heads: tensors in, tensors out.

The same for weights that come from a file and for those of a model in memory, with statistics or without.

What a group loses is known before it is merged (`group_loss`): all follows from the Gram matrices of a layer's heads,
made once, of which a group's are blocks. Keys and values each count as the share of their energy that is lost, so that
the two can be added.

Legend: as in `heads/attention.py`, and N rows of a plane.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mha2gqa.families.attention import AttentionLayer, gather, scatter
from mha2gqa.heads.attention import NOTHING_KNOWN, AttentionHeads, Freedom, Statistics
from mha2gqa.heads.grouping import Groups, contiguous, similar
from mha2gqa.heads.metric import Metric
from mha2gqa.methods import find_method, layer_method
from mha2gqa.methods.aligned.basis import lost_energy
from mha2gqa.methods.aligned.distances import fit_over_distances, own_grams, scores_energy
from mha2gqa.methods.aligned.keys import (
    effective_keys,
    plane_weights,
    query_energies,
    rows_of_heads,
    share_plane_by_plane,
)
from mha2gqa.methods.aligned.planes import plane_grams, plane_loss
from mha2gqa.methods.aligned.values import value_weights

GroupLoss = Callable[[Sequence[int]], float]
"""KV heads -> what their merge loses, as a share of the layer's energy of keys and of values."""


def group_loss(heads: AttentionHeads, statistics: Statistics | None) -> GroupLoss:
    """Return the loss of any group of a layer's KV heads.

    Args:
        heads: The layer.
        statistics: Of its inputs; None treats them as uncorrelated and of equal size.
    """
    known = (statistics or NOTHING_KNOWN).like(heads.k_KEX)
    sides = (list(_keys(heads, known)), [_values(heads, known)])
    totals = [sum(part.total for part in side) for side in sides]

    def loss(group: Sequence[int]) -> float:
        members = torch.tensor(group, device=heads.k_KEX.device)
        # Scores and values have no common unit: of each, all that a layer has counts as one.
        lost = [sum(part(members) for part in side) for side in sides]
        return sum(one / total for one, total in zip(lost, totals, strict=True) if total > 0)

    return loss


class _Planes:
    """Planes or channels of all heads."""

    def __init__(self, rows_KPNX: torch.Tensor, weight_KP: torch.Tensor, inputs: Metric, freedom: Freedom) -> None:
        self._gram_PKK = plane_grams(rows_KPNX, weight_KP, inputs)
        self._freedom = freedom
        self.total = float(self._gram_PKK.diagonal(dim1=-2, dim2=-1).sum())

    def __call__(self, members: torch.Tensor) -> float:
        return float(plane_loss(self._gram_PKK[:, members[:, None], members], self._freedom))


class _FreeValues:
    """Values that each head may multiply by any matrix."""

    def __init__(self, heads: AttentionHeads, known: Statistics) -> None:
        self._known = known
        self._gram = known.of_values.gram(heads.v_KFX.flatten(0, 1))
        self._o_KSDF = heads.o_HDF.unflatten(0, (len(heads.v_KFX), -1))
        self._width = heads.v_KFX.shape[1]
        # What each head adds to the output, taken alone: which of them err together depends on the group.
        columns_KDF = self._o_KSDF.flatten(1, 2)
        own_KFF = own_grams(self._gram, len(columns_KDF))
        self.total = float((columns_KDF.mT @ columns_KDF * own_KFF).sum())

    def __call__(self, members: torch.Tensor) -> float:
        rows = rows_of_heads(members, self._width)
        known = self._known.members(members.tolist(), self._o_KSDF.shape[1])
        weights = value_weights(self._o_KSDF[members], known.together_HH)
        return lost_energy(weights, self._gram[rows[:, None], rows], self._width)


class _FreeKeys:
    """Keys that no norm holds."""

    def __init__(self, heads: AttentionHeads, known: Statistics) -> None:
        self._k_KEX, self._rotary = heads.k_KEX, heads.rotary
        self._gram = known.inputs.gram(heads.k_KEX.flatten(0, 1))
        self._energy_KEE = query_energies(heads, known.query_inputs)
        self.total = scores_energy(self._gram, self._energy_KEE, heads.rotary)

    def __call__(self, members: torch.Tensor) -> float:
        rows = rows_of_heads(members, self._k_KEX.shape[1])
        gram, energy_REE = self._gram[rows[:, None], rows], self._energy_KEE[members]
        # The merge itself, on blocks of matrices that were made once: it takes no rows to know what it loses.
        start = share_plane_by_plane(self._k_KEX[members], gram, energy_REE, self._rotary)
        return fit_over_distances(start, gram, energy_REE, self._rotary)[1]


def _keys(heads: AttentionHeads, known: Statistics) -> Iterator[_Planes | _FreeKeys]:
    if heads.keys == "free":
        yield _FreeKeys(heads, known)
        return
    keys = effective_keys(heads)
    for planes_PN in (heads.rotary.planes(), heads.rotary.rest(keys.shape[1])):
        if len(planes_PN):
            weight_KP = plane_weights(heads, planes_PN, known.query_inputs)
            yield _Planes(keys[:, planes_PN], weight_KP, known.inputs, heads.keys)


def _values(heads: AttentionHeads, known: Statistics) -> _Planes | _FreeValues:
    if heads.values == "free":
        return _FreeValues(heads, known)
    # As in `merge_values`: a channel's weight is the length of its columns of Wo, over all query heads that read it.
    weight_KF = heads.o_HDF.unflatten(0, (-1, heads.queries_per_head)).square().sum(dim=(1, 2)).sqrt()
    return _Planes(heads.v_KFX[:, :, None], weight_KF, known.of_values, heads.values)


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
