"""Low-rank caches that others published, to measure latent attention against: nothing of the package uses them.

    low_rank    keys and values each of low rank, by a whitened SVD (SVD-LLM, arXiv 2403.07378; CARE)
    joint_pca   one shared row a rotary plane, and one PCA of what it leaves of the keys together with the values, both
                brought to one size (TransMLA, arXiv 2502.07864, without its training)

The first keeps every rotation, applied behind the low-rank factors: what would be cached is theirs, but heads would
have to be made anew for every token that is read. The second drops the rotation of what the shared rows leave, as its
authors do; it is written in the package's own host.

Legend: as in `mha2gqa/heads/attention.py`.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer, gather, scatter
from mha2gqa.heads.attention import AttentionHeads, Statistics
from mha2gqa.heads.grouping import contiguous
from mha2gqa.heads.metric import Metric
from mha2gqa.methods.aligned.basis import firm, leading_mixtures
from mha2gqa.methods.aligned.planes import complex_grams, leading_vectors
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.student import install, own_tensors
from mha2gqa.targets.latent.form import LatentHeads
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.rope import ladder_key


@torch.no_grad()
def low_rank(
    original: PreTrainedModel, layers: Iterable[AttentionLayer], statistics: Mapping[str, Statistics], rank: int
) -> PreTrainedModel:
    """Return the original with keys and values that are mixtures of `rank` numbers each."""
    model = copy.deepcopy(original)
    for layer in layers:
        own = own_tensors(original, layer)
        whole = _unmerged(layer, own)
        heads, inputs = gather(whole, own), statistics[layer.module].inputs
        changed = {name: _of_rank(getattr(heads, name), inputs, rank) for name in ("k_KEX", "v_KFX")}
        groups = contiguous(layer.kv_heads, layer.kv_heads)
        install(model.get_submodule(layer.module), scatter(whole, AttentionHeads(**vars(heads) | changed), groups, own))
    return model


def _of_rank(rows_KEX: torch.Tensor, inputs: Metric, rank: int) -> torch.Tensor:
    """Return the rows of all heads as mixtures of so many, the best in the metric of the inputs."""
    rows = rows_KEX.flatten(0, 1).double()
    gram = inputs.like(rows).gram(rows)
    mixing = leading_mixtures(torch.eye(len(rows), dtype=rows.dtype), gram, min(rank, len(rows)))
    seen = mixing @ gram
    lift = torch.linalg.solve(firm(seen @ mixing.mT, rows.dtype), seen).mT
    found_KEX: torch.Tensor = (lift @ mixing @ rows).view(rows_KEX.shape).to(rows_KEX)
    return found_KEX


def _unmerged(layer: AttentionLayer, tensors: Mapping[str, torch.Tensor]) -> AttentionLayer:
    blocks = tuple(replace(block, after=block.before) for block in layer.blocks)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return replace(layer, groups=layer.kv_heads, blocks=blocks, shapes=shapes)


@torch.no_grad()
def joint_pca(
    original: PreTrainedModel, source: LatentSource, statistics: Mapping[str, Statistics], cache: int
) -> PreTrainedModel | None:
    """Return the host's model; None where one row for each plane leaves no room for a latent."""
    planes = len(source.rotary.frequencies)
    key = ladder_key(source.rotary, planes, planes)
    if key.width >= cache:
        return None
    host = LatentHost(source, key, cache - key.width)
    student = build_latent_student(original, host)
    for layer in source.layers:
        known, heads = statistics[layer.module], source.heads(layer, own_tensors(original, layer))
        found = _pca(heads, known.inputs, host.latent)
        install(student.get_submodule(layer.module), host.attention(layer, found, known))
    return student


def _pca(heads: AttentionHeads, inputs: Metric, latent: int) -> LatentHeads:
    inputs, (count, width) = inputs.like(heads.k_KEX), heads.k_KEX.shape[:2]
    first, second = heads.rotary.planes().T
    z_KPX = torch.complex(heads.k_KEX[:, first], heads.k_KEX[:, second])
    gram = complex_grams(inputs.gram(heads.k_KEX.flatten(0, 1)), heads.rotary.planes(), torch.ones(count, len(first)))
    vector_KP = leading_vectors(gram).to(z_KPX.dtype)
    shared_PX = (vector_KP.conj()[..., None] * z_KPX).sum(dim=0)
    left_KPX = z_KPX - vector_KP[..., None] * shared_PX
    left_KEX = heads.k_KEX.clone()
    left_KEX[:, first], left_KEX[:, second] = left_KPX.real, left_KPX.imag
    parts = [left_KEX.flatten(0, 1), heads.v_KFX.flatten(0, 1)]
    sizes = [inputs.energies(part).mean().sqrt().clamp(min=1e-12) for part in parts]
    rows = torch.cat([part / size for part, size in zip(parts, sizes, strict=True)])
    vectors = torch.linalg.eigh(inputs.gram(rows).double()).eigenvectors[:, -latent:].to(rows)
    up_keys, up_values = (
        vectors * torch.cat([s.expand(len(p)) for s, p in zip(sizes, parts, strict=True)])[:, None]
    ).split([len(part) for part in parts])
    lift_KRE = heads.k_KEX.new_zeros(count, 2 * len(first), width)
    rank = torch.arange(len(first))
    # Keys are the shared row times the vector, so queries meet it times the vector's conjugate.
    lift_KRE[:, rank, first] = lift_KRE[:, rank + len(first), second] = vector_KP.real
    lift_KRE[:, rank + len(first), first], lift_KRE[:, rank, second] = -vector_KP.imag, vector_KP.imag
    shared = heads.queries_per_head
    return LatentHeads(
        q_HEX=heads.q_HEX,
        o_HDF=heads.o_HDF,
        turning_RX=torch.cat([shared_PX.real, shared_PX.imag]),
        latent_CX=vectors.mT @ rows,
        turning_lift_HRE=lift_KRE.repeat_interleave(shared, 0),
        latent_lift_HCE=up_keys.unflatten(0, (count, width)).mT.repeat_interleave(shared, 0),
        value_HFC=up_values.unflatten(0, heads.v_KFX.shape[:2]).repeat_interleave(shared, 0),
    )
