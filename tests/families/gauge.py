"""Multiplies the heads of a layer with random numbers of the kinds that its freedom allows, and makes up for them.

If a layer's freedom is what it says, the model computes the same afterwards. Written from the definition of each
freedom (`mha2gqa.heads.attention.Freedom`), head by head, and knows nothing about merging.
"""

import dataclasses

import torch

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import AttentionHeads, Freedom
from mha2gqa.heads.grouping import Groups


def unmerged(layer: AttentionLayer, tensors: dict[str, torch.Tensor]) -> AttentionLayer:
    """The layer as it is in the source, with one group per KV head."""
    blocks = tuple(dataclasses.replace(block, after=block.before) for block in layer.blocks)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return dataclasses.replace(layer, groups=layer.kv_heads, blocks=blocks, shapes=shapes)


def shuffled(heads: AttentionHeads, generator: torch.Generator) -> tuple[AttentionHeads, Groups]:
    """KV heads in another order, each with its query heads."""
    order = torch.randperm(len(heads.k_KEX), generator=generator)
    shared = heads.queries_per_head
    q, o = (rows.unflatten(0, (-1, shared))[order].flatten(0, 1) for rows in (heads.q_HEX, heads.o_HDF))
    gains: dict[str, torch.Tensor] = {}
    if heads.q_gain_HE is not None and heads.k_gain_KE is not None:
        gains["q_gain_HE"] = heads.q_gain_HE.unflatten(0, (-1, shared))[order].flatten(0, 1)
        gains["k_gain_KE"] = heads.k_gain_KE[order]
    moved = dataclasses.replace(heads, q_HEX=q, k_KEX=heads.k_KEX[order], v_KFX=heads.v_KFX[order], o_HDF=o, **gains)
    return moved, tuple((head,) for head in order.tolist())


def disguised(heads: AttentionHeads, generator: torch.Generator) -> AttentionHeads:
    """The same layer with other numbers in it."""
    result = dataclasses.replace(
        heads,
        q_HEX=heads.q_HEX.clone(),
        k_KEX=heads.k_KEX.clone(),
        v_KFX=heads.v_KFX.clone(),
        o_HDF=heads.o_HDF.clone(),
    )
    if heads.q_gain_HE is not None and heads.k_gain_KE is not None:
        result = dataclasses.replace(result, q_gain_HE=heads.q_gain_HE.clone(), k_gain_KE=heads.k_gain_KE.clone())
    for head in range(len(heads.k_KEX)):
        queries = slice(head * heads.queries_per_head, (head + 1) * heads.queries_per_head)
        _disguise_keys(result, head, queries, generator)
        matrix = _value_matrix(heads.values, heads.v_KFX.shape[1], generator)
        result.v_KFX[head] = matrix @ heads.v_KFX[head]
        readers = torch.eye(len(matrix), dtype=matrix.dtype) * matrix.sign() if heads.values == "normed" else None
        result.o_HDF[queries] = heads.o_HDF[queries] @ (torch.linalg.inv(matrix) if readers is None else readers)
    return result


def _disguise_keys(heads: AttentionHeads, head: int, queries: slice, generator: torch.Generator) -> None:
    if heads.keys == "fixed":
        return
    matrix, readers = _key_matrices(heads, generator)
    if heads.k_gain_KE is not None and heads.q_gain_HE is not None:
        heads.k_gain_KE[head] *= matrix.diagonal()
        heads.q_gain_HE[queries] /= matrix.diagonal()
        return
    heads.k_KEX[head] = matrix @ heads.k_KEX[head]
    heads.q_HEX[queries] = readers @ heads.q_HEX[queries]


def _key_matrices(heads: AttentionHeads, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head's keys, and its queries, are multiplied with."""
    width = heads.k_KEX.shape[1]
    matrix = torch.eye(width, dtype=torch.float64)
    for first, second in heads.rotary.planes().tolist():
        rows = torch.tensor([first, second])
        if heads.keys == "free":
            size, angle = _size(generator), 3 * _normal(generator)
            cosine, sine = size * torch.cos(torch.tensor(angle)), size * torch.sin(torch.tensor(angle))
            matrix[rows[:, None], rows] = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
        else:
            matrix[rows, rows] = _factor(heads.keys, generator)
    rest = heads.rotary.rest(width).flatten()
    if heads.keys == "free":
        matrix[rest[:, None], rest] = _invertible(len(rest), generator)
    else:
        for row in rest.tolist():
            matrix[row, row] = _factor(heads.keys, generator)
    if heads.keys == "normed":
        return matrix * _size(generator), matrix
    return matrix, torch.linalg.inv(matrix).T


def _value_matrix(freedom: Freedom, width: int, generator: torch.Generator) -> torch.Tensor:
    if freedom == "fixed":
        return torch.eye(width, dtype=torch.float64)
    if freedom == "free":
        return _invertible(width, generator)
    signs = torch.tensor([_factor(freedom, generator) for _ in range(width)], dtype=torch.float64)
    return torch.diag(signs) * (_size(generator) if freedom == "normed" else 1.0)


def _factor(freedom: Freedom, generator: torch.Generator) -> float:
    sign = 1.0 if _normal(generator) > 0 else -1.0
    return sign * _size(generator) if freedom == "scaled" else sign


def _invertible(width: int, generator: torch.Generator) -> torch.Tensor:
    matrix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(matrix).Q * (0.6 + torch.rand(width, generator=generator, dtype=torch.float64))


def _size(generator: torch.Generator) -> float:
    return 0.6 + float(torch.rand(1, generator=generator))


def _normal(generator: torch.Generator) -> float:
    return float(torch.randn(1, generator=generator))
