"""What is known of the inputs of each layer without any text: which directions the weights write into.

The residual stream holds embeddings and what the layers before have added. Its second moment is guessed as
that of the embedding rows plus, for each attention layer before, that of its output projection, all scaled
to the same size; the norm in front of a layer then scales the channels. It is only the metric in which
`aligned` gives something up: a bad guess makes the result less close, never wrong.

Kept as a diagonal and as many directions as matter (`metric.LowRank`), so that neither the guess nor what is
done with it multiplies matrices of the model's full width: up to `_RANK` wide it is the whole moment.

Legend: D model width, X inputs of a layer (D, and one more that is 1 where it has biases), V vocabulary,
Z width of the concatenated heads, N columns, S directions that are kept.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

from mha2gqa.families.names import INPUT_NORMS
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.metric import LowRank

_SHARE = 0.5
"""Size of what an attention layer adds, beside that of the embeddings."""
_EVEN = 0.9
"""Share of even inputs in the guess for queries. Beside 0, the reference loses 25 % less, a verse model 3 to 8 % less,
and TinyStories-656K with 2 KV heads 4 % more; among keys and values it is not better everywhere."""
_ROWS = 8192
"""Embedding rows that are looked at, evenly spaced."""
_RANK = 256
"""Directions that are kept beside the diagonal."""
_LAYER_RANK = 128
"""Directions that one layer's output projection adds at most."""

_Moment: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""d and F of diag(d) + F Fᵀ, `[D]` and `[D, S]`."""


class Prior:
    """Collects what was written into the residual stream, layer by layer.

    Args:
        embedding_VD: The input embedding; None where there is none of the model's width.
        width: D.
        device: Where to compute.
    """

    def __init__(self, embedding_VD: torch.Tensor | None, width: int, device: torch.device) -> None:
        self._moment: _Moment = torch.ones(width, device=device), torch.zeros(width, 0, device=device)
        if embedding_VD is not None and embedding_VD.shape[1] == width:
            # A token enters the stream as its row: the rows' moment is that of the stream at its start, but for how
            # often each token occurs, which no weight tells.
            rows = embedding_VD[:: max(1, len(embedding_VD) // _ROWS)].float()
            self._moment = _sized(_main_directions(rows.mT, _RANK))

    def statistics(self, gain_D: torch.Tensor | None, *, has_bias: bool) -> Statistics:
        """Return the guess for a layer whose norm has these gains."""
        # The norm divides each token by its size, so of the moment only the shape passes it; its gains g then make of M
        # diag(g) M diag(g). That tokens of one direction may be larger than others is left out.
        diagonal, factor = _sized(self._moment)
        if gain_D is not None:
            gain = gain_D.to(diagonal)
            diagonal, factor = diagonal * gain.square(), factor * gain[:, None]
        # Shrunk towards the identity of the same energy, which stays a diagonal and a factor.
        queries = (1 - _EVEN) * diagonal + _EVEN * _energy((diagonal, factor)), factor * (1 - _EVEN) ** 0.5
        return Statistics(_guess((diagonal, factor), has_bias=has_bias), _guess(queries, has_bias=has_bias))

    def add(self, output_DZ: torch.Tensor) -> None:
        """Take in an output projection that writes into the stream."""
        if len(output_DZ) == len(self._moment[0]):
            # How much a layer adds depends on its values and on what it attends to, too; here each adds as much.
            added = _sized(_main_directions(output_DZ.float(), _LAYER_RANK))
            self._moment = _sum(self._moment, (added[0] * _SHARE, added[1] * _SHARE**0.5))


def _main_directions(columns_DN: torch.Tensor, rank: int) -> _Moment:
    """Return A Aᵀ, its leading directions as a factor and of the rest the diagonal.

    Nyström's approximation on a random subspace after one power iteration (Halko, Martinsson and Tropp 2011,
    sections 4.5 and 5.4): never more than A Aᵀ, so that the rest is positive, and A Aᵀ itself where there are as
    many directions as channels.
    """
    # With C = A Aᵀ, which is never formed, and Q an orthonormal basis of C times random columns: the power iteration
    # squares the ratio of what is kept to what is not.
    width = len(columns_DN)
    random = torch.randn(width, min(width, rank), generator=torch.Generator().manual_seed(0)).to(columns_DN.device)
    directions_DS = torch.linalg.qr(columns_DN @ (columns_DN.mT @ random)).Q
    # Qᵀ C Q = V λ Vᵀ, and F = C Q V λ^-½ has F Fᵀ = C Q (Qᵀ C Q)⁻¹ Qᵀ C, Nyström's approximation.
    seen_NS = columns_DN.mT @ directions_DS
    values, vectors = torch.linalg.eigh((seen_NS.mT @ seen_NS).double())
    used = values > values[-1] * 1e-7  # what fp32 resolves
    scaled = vectors[:, used] / values[used].sqrt()
    factor_DS = columns_DN @ (seen_NS @ scaled.to(seen_NS.dtype))
    return (columns_DN.square().sum(dim=1) - factor_DS.square().sum(dim=1)).clamp(min=0), factor_DS


def _sum(one: _Moment, other: _Moment) -> _Moment:
    """Return the sum of two moments, with the leading directions of both and of the rest the diagonal."""
    both_DS = torch.cat([one[1], other[1]], dim=1)
    diagonal = one[0] + other[0]
    if both_DS.shape[1] <= _RANK:
        return diagonal, both_DS
    # F V has orthogonal columns, weakest first, and the same F Fᵀ. What does not fit keeps its energy in each channel.
    _, vectors = torch.linalg.eigh((both_DS.mT @ both_DS).double())
    turned_DS = both_DS @ vectors.to(both_DS.dtype)
    rest, factor = turned_DS[:, :-_RANK], turned_DS[:, -_RANK:]
    return diagonal + rest.square().sum(dim=1), factor


def norm_name(model: nn.Module, module: str) -> str | None:
    """Return the path of the norm in front of an attention module, where a block names one."""
    block, _, attention = module.rpartition(".")
    children = dict(model.get_submodule(block).named_children())
    found = next((name for name in INPUT_NORMS if name in children and name != attention), None)
    return None if found is None else f"{block}.{found}"


def norm_gains(norm: nn.Module, tensors: Mapping[str, torch.Tensor], width: int) -> torch.Tensor | None:
    """Return what a norm multiplies each channel with, `[D]`: asked of the module itself, which may add 1 to its gains.

    Args:
        norm: The module, without weights (on the meta device).
        tensors: Its parameters.
        width: D.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in norm.named_parameters()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()} or (width,) not in shapes.values():
        return None
    even = torch.ones(width)
    even[1::2] = -1  # of mean 0 and variance 1, so that every kind of norm leaves it as it is
    # Half the difference of the answers to x and -x: a bias of the norm is in both, and goes.
    both = torch.stack([even, -even])
    answer = torch.func.functional_call(norm, {name: tensor.float() for name, tensor in tensors.items()}, (both,))
    gains: torch.Tensor = (answer[0] - answer[1]) / 2 * even
    return gains


def _sized(moment: _Moment) -> _Moment:
    """Return a moment of mean energy 1 a channel."""
    (diagonal, factor), size = moment, _energy(moment)
    return diagonal / size, factor / size.sqrt()


def _energy(moment: _Moment) -> torch.Tensor:
    """Return the mean energy of a channel, a number."""
    diagonal, factor = moment
    return (diagonal.sum() + factor.square().sum()) / len(diagonal)


def _guess(moment: _Moment, *, has_bias: bool) -> LowRank:
    """Return a moment as a metric; with biases, of one more input that is always 1."""
    diagonal, factor = moment
    if has_bias:  # its product with each other input is that one's mean, which is taken for 0
        diagonal, factor = functional.pad(diagonal, (0, 1), value=1.0), functional.pad(factor, (0, 0, 0, 1))
    return LowRank(diagonal, factor)
