"""Which rotary planes a shared key should hold: what each would catch that a key without rotation would not.

A plane of all heads is one complex row a head (`methods/aligned/planes.py`), so k shared rows for it catch the k
largest eigenvalues λ of the heads' weighted Gram matrix. Of a plane that turns slowly the latent catches as much: in
the mean over distances a key that stands still meets one that turns by κ = Σ w_d exp(-iωd), and catches |κ|² of it.
What is left for a rotary key is λ (1 - |κ|²). Fast planes so want several shared rows, slow ones none.

All layers share one rotary embedding, so their gains are added, each as a share of its layer's output.

Legend: as in `heads/attention.py`, P planes of a head, N ranks (as many as KV heads).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.methods.aligned.distances import Turning
from mha2gqa.methods.aligned.planes import complex_grams
from mha2gqa.targets.latent.costs import output_energy, score_costs, value_costs


@dataclass(frozen=True)
class SharedRows:
    """The best shared rows of each plane."""

    caught_PN: torch.Tensor
    """Energy of scores that each catches, the leading one first; fp64."""
    vector_PNK: torch.Tensor
    """Of the weighted heads' rows, which mixture it is: Σ_h conj(vector) weight z_h; complex, orthonormal."""
    weight_PK: torch.Tensor
    """Root of the costs of each head's plane."""


def shared_rows(gram_of_keys: torch.Tensor, costs_KEE: torch.Tensor, rotary: Rotary) -> SharedRows:
    """Find the shared rows of each plane.

    Args:
        gram_of_keys: Gram matrix of all rows of keys in the metric of the inputs, `[K·E, K·E]`.
        costs_KEE: `score_costs`.
        rotary: Which rows of a head are a plane.
    """
    planes_P2 = rotary.planes()
    weight_KP = costs_KEE.diagonal(dim1=1, dim2=2)[:, planes_P2].mean(dim=-1).clamp(min=0).sqrt()
    values_PN, vectors = torch.linalg.eigh(complex_grams(gram_of_keys, planes_P2, weight_KP).to(torch.complex128))
    return SharedRows(values_PN.clamp(min=0).flip(-1), vectors.mT.flip(1), weight_KP.T.double())


def standing(rotary: Rotary) -> torch.Tensor:
    """Return |κ| of each plane: how much of it a key that does not turn can catch, fp64 `[P]`."""
    speeds = rotary.frequencies
    return Turning.between(speeds, (0.0,), both_ways=rotary.both_ways, device=torch.device("cpu")).apart_PP[:, 0].abs()


def plane_gains(heads: AttentionHeads, known: Statistics, scaling: float) -> torch.Tensor:
    """Return what a layer's shared rotary rows are worth, as shares of its output's energy, fp64 `[P, N]` on the CPU.

    Args:
        heads: The layer; its rotary speeds are known.
        known: Of its inputs.
        scaling: What scores are multiplied with before the softmax.
    """
    known = known.like(heads.k_KEX)
    gram_of_values = known.of_values.gram(heads.v_KFX.flatten(0, 1))
    costs_KEE = score_costs(heads, known, gram_of_values, scaling)
    shared = shared_rows(known.of_values.gram(heads.k_KEX.flatten(0, 1)), costs_KEE, heads.rotary)
    left_P1 = 1 - standing(heads.rotary)[:, None].square()
    return shared.caught_PN.cpu() * left_P1 / output_energy(value_costs(heads, known), gram_of_values)


def best_planes(gains: Sequence[torch.Tensor], count: int) -> tuple[tuple[int, int], ...]:
    """Return the planes and ranks that are worth the most over all layers, in their order; fewer where no more are.

    Args:
        gains: `plane_gains` of each layer that rotates.
        count: How many planes the shared key has.
    """
    total_PN = torch.stack(list(gains)).mean(dim=0)
    ranks = total_PN.shape[1]
    places = total_PN.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return tuple(sorted((place // ranks, place % ranks) for place in places))
