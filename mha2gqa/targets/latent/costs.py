"""What errors of keys and of values cost the output of a layer, in the same unit, so that a fit can weigh them.

A head's output is Σ_j a_j O V x_j with a = softmax(score). Two errors reach it. An error e of a value adds O e: heads
that attend to the same tokens err together, so errors of heads are weighed together, by `methods/aligned/values.py`'s
guess of how much of that they share. An error δ of a score changes a_j by a_j (δ_j - Σ a δ), which moves the output by
a_j δ_j O V (x_j - mean): in size, δ times what head h's attention moves at all. So score errors of a head count with
s_h = tr(O_h V_h M V_hᵀ O_hᵀ), M the second moment of the inputs, and both are squared errors of the layer's output.

Legend: as in `heads/attention.py`, S query heads of a KV head.
"""

import torch

from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.methods.aligned.distances import own_grams
from mha2gqa.methods.aligned.values import value_weights


def score_costs(heads: AttentionHeads, known: Statistics, gram_of_values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return how much errors of the rows of each KV head's keys matter, `[K, E, E]`.

    Σ_h s_h Q_h M_q Q_hᵀ over the query heads of a KV head, in the square of the softmax's scale.

    Args:
        heads: The layer.
        known: Of its inputs.
        gram_of_values: Gram matrix of all rows of values, `[K·F, K·F]`.
        scaling: What scores are multiplied with before the softmax.
    """
    own_KFF = own_grams(gram_of_values, len(heads.v_KFX))
    o_KSDF = heads.o_HDF.unflatten(0, (len(heads.v_KFX), -1))
    moved_KS = torch.einsum("ksdf,kfg,ksdg->ks", o_KSDF, own_KFF, o_KSDF)
    queries_KSEE = known.query_inputs.gram(heads.q_HEX).unflatten(0, (len(heads.k_KEX), -1))
    costs_KEE: torch.Tensor = (moved_KS[..., None, None] * queries_KSEE).sum(dim=1) * scaling**2
    return costs_KEE


def value_costs(heads: AttentionHeads, known: Statistics) -> torch.Tensor:
    """Return how much errors of the rows of all KV heads' values matter, alone and together, `[K·F, K·F]`."""
    return value_weights(heads.o_HDF.unflatten(0, (len(heads.v_KFX), -1)), known.together_HH)


def output_energy(costs_of_values: torch.Tensor, gram_of_values: torch.Tensor) -> float:
    """Return the energy of a layer's output in the same unit: what is lost without any values."""
    return float((costs_of_values * gram_of_values).sum(dtype=torch.float64))
