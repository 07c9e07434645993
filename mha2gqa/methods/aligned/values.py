"""Merges the values of a group; the output projections take up what each head is multiplied with.

Errors of different heads add up in the layer's output, and heads that attend to the same tokens err together. How
alike heads attend is measured where text is read; weights do not tell, and there one number stands for all of them,
`_TOGETHER`.

Legend: as in `heads/attention.py`, with R KV heads of a group for K, S query heads of a KV head, N = R·F rows of all
heads.
"""

import itertools
from dataclasses import replace

import torch

from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.heads.metric import symmetric_product
from mha2gqa.methods.aligned.basis import leading_mixtures, share_basis
from mha2gqa.methods.aligned.planes import share_planes

_TOGETHER = 0.3
"""Correlation of what two query heads read. Of 0 to 0.7, 0.2 to 0.5 lost least; 0 lost up to a fifth more."""


def merge_values(heads: AttentionHeads, known: Statistics) -> AttentionHeads:
    """Return a group with one value head, and its output projections changed with it.

    Args:
        heads: The heads of a group; their keys may be merged already.
        known: Of the inputs, and of these heads.
    """
    v_RFX = heads.v_KFX
    o_RSDF = heads.o_HDF.unflatten(0, (len(v_RFX), -1))
    if heads.values == "free":
        rows = v_RFX.flatten(0, 1)
        basis = share_basis(v_RFX, value_weights(o_RSDF, known.together_HH), known.of_values.gram(rows))
        # Head's rows ≈ lift · shared, so Wo_h V_h ≈ (Wo_h lift) · shared: the lift goes into the outputs.
        o_RSDF = o_RSDF @ basis.lift_RFF[:, None]
        return replace(heads, v_KFX=(basis.mixing @ rows)[None], o_HDF=o_RSDF.flatten(0, 1))
    # Channel by channel, as planes of one row: an error of a channel reaches the output by its column of Wo.
    weight_RF = o_RSDF.square().sum(dim=(1, 2)).sqrt()
    planes = share_planes(v_RFX[:, :, None], weight_RF, known.of_values, heads.values)
    o_RSDF = o_RSDF * planes.factor_RP[:, None, None]
    return replace(heads, v_KFX=planes.shared_PNX.squeeze(1)[None], o_HDF=o_RSDF.flatten(0, 1))


def leading_rows(heads: AttentionHeads, known: Statistics, count: int) -> torch.Tensor:
    """Return the mixtures of a group's value rows that keep most of what is read of them, `[count, X]`.

    Args:
        heads: The heads of a group.
        known: Of the inputs, and of these heads.
        count: How many; as many as there are rows gives the rows themselves.
    """
    # The problem of a merge, with more mixtures than a head has rows: what `refit_values` chooses from on text.
    rows = heads.v_KFX.flatten(0, 1)
    if count == len(rows):
        return rows
    weights = value_weights(heads.o_HDF.unflatten(0, (len(heads.v_KFX), -1)), known.together_HH)
    return leading_mixtures(weights, known.of_values.gram(rows), count).to(rows) @ rows


def value_weights(o_RSDF: torch.Tensor, together_HH: torch.Tensor | None) -> torch.Tensor:
    """Return how much errors of the rows of values matter, alone and together, `[N, N]`.

    Args:
        o_RSDF: Output projections of the query heads that read each value head.
        together_HH: Correlation of what two of these query heads read; None guesses.
    """
    if together_HH is not None:
        return _measured_weights(o_RSDF, together_HH)
    # An error Δ of the values adds Σ_s O_s Δ x_s to the output, x_s being the mix of inputs that query head s reads.
    # For mixes of one size, correlated by r, its mean square is (1 - r) Σ_s |O_s Δ|² + r |Σ_s O_s Δ|²: the first has a
    # block Σ O_sᵀO_s for each KV head, the second reaches across KV heads.
    columns, together_DN = o_RSDF.flatten(1, 2), o_RSDF.sum(dim=1).transpose(0, 1).flatten(1)
    alone = torch.block_diag(*(columns.mT @ columns))
    weights: torch.Tensor = (1 - _TOGETHER) * alone + _TOGETHER * symmetric_product(together_DN.mT, together_DN.mT)
    return weights


def _measured_weights(o_RSDF: torch.Tensor, together_HH: torch.Tensor) -> torch.Tensor:
    # The mean square of Σ_h O_h Δ_h x_h is Σ_h Σ_h' c_hh' tr(Δ_hᵀ O_hᵀ O_h' Δ_h' M); query heads of one value head
    # share its Δ. Correlations are positive semidefinite as a matrix, and so is their product, block by block, with
    # O_hᵀO_h'.
    heads, queries, _, width = o_RSDF.shape
    weights = o_RSDF.new_zeros(heads, width, heads * width)
    for head, query in itertools.product(range(heads), range(queries)):
        # Over the query heads that share a Δ' their columns are summed first: that leaves one product for each h.
        counts_RS11 = together_HH[head * queries + query].view(heads, queries, 1, 1)
        beside_RDF = (o_RSDF * counts_RS11).sum(dim=1)
        weights[head] += o_RSDF[head, query].mT @ beside_RDF.transpose(0, 1).flatten(1)
    return weights.flatten(0, 1)
