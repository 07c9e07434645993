"""What merging a set of heads loses, without merging them: for choosing which heads share one.

Everything follows from the Gram matrices of all heads of a layer, made once: a group's are blocks of them.
Keys and values each count as the share of their energy that is lost, so that the two can be added.

Legend: as in `heads.py`, and N rows of a plane.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from mha2gqa.heads import NOTHING_KNOWN, AttentionHeads, Freedom, Statistics
from mha2gqa.merging.basis import basis_loss, weighted_gram, weights
from mha2gqa.merging.keys import effective_keys, plane_weights, query_energies
from mha2gqa.merging.planes import plane_grams, plane_loss
from mha2gqa.metric import Metric

GroupLoss = Callable[[Sequence[int]], float]
"""KV heads -> what their merge loses, as a share of the layer's energy of keys and of values."""


def group_loss(heads: AttentionHeads, statistics: Statistics | None) -> GroupLoss:
    """Return the loss of any group of a layer's KV heads.

    Args:
        heads: The layer.
        statistics: Of its inputs; None treats them as uncorrelated and of equal size.
    """
    known = (statistics or NOTHING_KNOWN).like(heads.k_KEX)
    sides = (list(_keys(heads, known)), [_values(heads, known.inputs)])
    totals = [sum(part.total for part in side) for side in sides]

    def loss(group: Sequence[int]) -> float:
        members = torch.tensor(group, device=heads.k_KEX.device)
        lost = [sum(float(part(members)) for part in side) for side in sides]
        return sum(one / total for one, total in zip(lost, totals, strict=True) if total > 0)

    return loss


class _Planes:
    """Planes or channels of all heads."""

    def __init__(self, rows_KPNX: torch.Tensor, weight_KP: torch.Tensor, inputs: Metric, freedom: Freedom) -> None:
        self._gram_PKK = plane_grams(rows_KPNX, weight_KP, inputs, freedom)
        self._freedom = freedom
        self.total = float(self._gram_PKK.diagonal(dim1=-2, dim2=-1).real.sum())

    def __call__(self, members: torch.Tensor) -> torch.Tensor:
        return plane_loss(self._gram_PKK[:, members[:, None], members], self._freedom)


class _Block:
    """Blocks of rows of all heads."""

    def __init__(self, rows_KFX: torch.Tensor, energy_KFF: torch.Tensor, inputs: Metric) -> None:
        self._gram = weighted_gram(rows_KFX, weights(energy_KFF)[0], inputs).to(rows_KFX.dtype)
        self._width = rows_KFX.shape[1]
        self.total = float(self._gram.trace())

    def __call__(self, members: torch.Tensor) -> torch.Tensor:
        rows = (members[:, None] * self._width + torch.arange(self._width, device=members.device)).flatten()
        return basis_loss(self._gram[rows[:, None], rows], self._width)


def _keys(heads: AttentionHeads, known: Statistics) -> Iterator[_Planes | _Block]:
    planes, rest = heads.rotary.planes(), heads.rotary.rest(heads.k_KEX.shape[1])
    keys = effective_keys(heads)
    if len(planes):
        weight_KP = plane_weights(heads, planes, known.query_inputs)
        yield _Planes(keys[:, planes], weight_KP, known.inputs, heads.keys)
    if len(rest) and heads.keys == "free":
        energy_KUU = query_energies(heads, rest.flatten(), known.query_inputs)
        yield _Block(keys[:, rest.flatten()], energy_KUU, known.inputs)
    elif len(rest):
        yield _Planes(keys[:, rest], plane_weights(heads, rest, known.query_inputs), known.inputs, heads.keys)


def _values(heads: AttentionHeads, inputs: Metric) -> _Planes | _Block:
    columns_KDF = heads.o_HDF.unflatten(0, (-1, heads.queries_per_head)).flatten(1, 2)
    if heads.values == "free":
        return _Block(heads.v_KFX, columns_KDF.mT @ columns_KDF, inputs)
    weight_KF = columns_KDF.square().sum(dim=1).sqrt()
    return _Planes(heads.v_KFX[:, :, None], weight_KF, inputs, heads.values)
