"""Conversions that others published, as layer methods, to measure against: nothing of the package uses them.

    mean_norm        the mean, each head scaled back to the size of those it replaces
    align            orthogonal Procrustes alignment of the heads of a group; changes no output
    procrustes       `align`, then the mean
    procrustes_norm  the same, scaled back

Alignment is that of Jin et al. 2024 (arXiv 2412.20677): values turned by any orthogonal matrix, keys by an angle per
rotary plane; the `dist` criterion of their code, contiguous groups, without the training that follows there. Heads are
compared by their outputs on calibration text, of which the criterion needs the second moment alone. Norm restoration:
the mean of heads that have little in common is smaller than they are, by the root of their number when nothing.
Multiplying by that root is common; here a head gets the root mean square of the norms, the same number in that case.

Legend: as in `mha2gqa/heads/attention.py`, and G groups, R KV heads of a group, P planes or blocks, N rows of one.
"""

from dataclasses import replace

import torch

from mha2gqa.errors import CalibrationError
from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.heads.grouping import Groups
from mha2gqa.heads.metric import Full
from mha2gqa.methods import layer_method

_ROUNDS, _ENOUGH = 100, 1e-5
"""Rounds of generalised Procrustes analysis at most, and the gain (as a share) that ends it; the authors' numbers."""


def mean_norm(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """Return the mean of each group's keys and values, scaled to the root mean square of their norms."""
    return restore_norms(layer_method("mean", 0)(heads, groups, statistics), heads, groups)


def procrustes(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """Return the mean of each group's keys and values after `align`."""
    return layer_method("mean", 0)(align(heads, groups, statistics), groups, statistics)


def procrustes_norm(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """Return what `procrustes` does, with keys and values scaled to the root mean square of the heads' norms."""
    return restore_norms(procrustes(heads, groups, statistics), heads, groups)


def restore_norms(merged: AttentionHeads, heads: AttentionHeads, groups: Groups) -> AttentionHeads:
    """Scale each merged key and value head to the root mean square of the Frobenius norms of those it replaces.

    Args:
        merged: A merge of `heads`.
        heads: The heads before.
        groups: Which of them became one.
    """
    order = torch.tensor(groups, device=heads.k_KEX.device)

    def restored(rows_GEX: torch.Tensor, rows_KEX: torch.Tensor) -> torch.Tensor:
        wanted_G = rows_KEX.square().sum(dim=(1, 2))[order].mean(dim=1).sqrt()
        found_G = rows_GEX.square().sum(dim=(1, 2)).sqrt().clamp(min=torch.finfo(rows_GEX.dtype).tiny)
        return rows_GEX * (wanted_G / found_G)[:, None, None]

    return replace(merged, k_KEX=restored(merged.k_KEX, heads.k_KEX), v_KFX=restored(merged.v_KFX, heads.v_KFX))


def align(heads: AttentionHeads, groups: Groups, statistics: Statistics | None = None) -> AttentionHeads:
    """Turn the heads of each group towards one another; queries and outputs turn with them, so no output changes.

    Args:
        heads: The layer.
        groups: Which KV heads are to be alike.
        statistics: Of the layer's inputs; None compares weights instead of outputs.

    Returns:
        The layer with all its heads, in their order.

    Raises:
        CalibrationError: A norm, or whatever else is in the way, fixes the basis of keys or values.
    """
    if (heads.keys, heads.values) != ("free", "free"):
        raise CalibrationError(f"Keys are {heads.keys}, values {heads.values}", expected="heads that may be turned")
    moment_XX = _moment(statistics)
    shared, parts = heads.queries_per_head, {"q": heads.q_HEX.clone(), "k": heads.k_KEX.clone()}
    planes, rest = heads.rotary.planes(), heads.rotary.rest(heads.k_KEX.shape[1]).flatten()
    if len(planes):
        turn_KP11 = _turns(_complex(heads.k_KEX, planes)[:, :, None], groups, moment_XX)
        for name, heads_shared in (("k", 1), ("q", shared)):
            turned = _complex(parts[name], planes) * turn_KP11.flatten(1).repeat_interleave(heads_shared, 0)[..., None]
            parts[name][:, planes[:, 0]], parts[name][:, planes[:, 1]] = turned.real, turned.imag
    if len(rest):
        turn_KUU = _turns(heads.k_KEX[:, None, rest], groups, moment_XX)[:, 0]
        parts["k"][:, rest] = turn_KUU @ parts["k"][:, rest]
        parts["q"][:, rest] = turn_KUU.repeat_interleave(shared, 0) @ parts["q"][:, rest]
    turn_KFF = _turns(heads.v_KFX[:, None], groups, moment_XX)[:, 0]
    outputs = heads.o_HDF @ turn_KFF.mT.repeat_interleave(shared, 0)
    return replace(heads, q_HEX=parts["q"], k_KEX=parts["k"], v_KFX=turn_KFF @ heads.v_KFX, o_HDF=outputs)


def _moment(statistics: Statistics | None) -> torch.Tensor | None:
    if statistics is None:
        return None
    if not isinstance(statistics.inputs, Full):
        raise CalibrationError(f"Heads are compared on {type(statistics.inputs).__name__}", expected="measured inputs")
    return statistics.inputs.moment_XX


def _complex(rows_KEX: torch.Tensor, planes_P2: torch.Tensor) -> torch.Tensor:
    first, second = planes_P2.T
    return torch.complex(rows_KEX[:, first], rows_KEX[:, second])


def _turns(rows_KPNX: torch.Tensor, groups: Groups, moment_XX: torch.Tensor | None) -> torch.Tensor:
    """Return the orthogonal (unitary) matrices `[K, P, N, N]` that bring the heads of each group nearest to their mean.

    Generalised Procrustes analysis (Gower 1975): all are turned towards the first, then again and again towards
    their mean, until its energy, which is all that merging keeps, grows no more.
    """
    order = torch.tensor(groups, device=rows_KPNX.device)
    rows_GRPNX = rows_KPNX[order]
    measured = rows_GRPNX if moment_XX is None else rows_GRPNX @ moment_XX.to(rows_GRPNX.dtype)
    target, kept = rows_GRPNX[:, :1], 0.0
    for _ in range(_ROUNDS):
        u, _, vh = torch.linalg.svd(target @ measured.mH)
        turn = u @ vh
        target = (turn @ rows_GRPNX).mean(dim=1, keepdim=True)
        before, kept = kept, float((target.conj() * (turn @ measured).mean(dim=1, keepdim=True)).real.sum())
        if not kept > before * (1 + _ENOUGH):
            break
    turn_KPNN = torch.empty_like(turn).flatten(0, 1)
    turn_KPNN[order.flatten()] = turn.flatten(0, 1)
    return turn_KPNN
