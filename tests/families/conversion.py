"""A conversion by `mean` or `aligned` inside the original, without files, and heads that are one head in disguise."""

import dataclasses

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer, gather, scatter
from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.heads.attention import AttentionHeads
from mha2gqa.heads.grouping import contiguous
from mha2gqa.methods.aligned import aligned
from mha2gqa.model.architecture import Architecture
from mha2gqa.refine.student import build_student, install, own_tensors

from .gauge import disguised, unmerged


class Conversion:
    """The conversion of a config to a number of KV heads."""

    def __init__(self, content: ConfigJson, groups: int) -> None:
        source = Architecture(content)
        moves = [(count, min(count.heads, groups)) for count in source.counts]
        self._result, self.layers = source.with_heads(moves), source.attention_layers(moves)

    def merged(self, original: PreTrainedModel, method: str) -> PreTrainedModel:
        student = self.student(original)
        self.merge(original, student, method)
        return student

    def student(self, original: PreTrainedModel) -> PreTrainedModel:
        """Return the converted class around the original's weights, its heads empty."""
        return build_student(original, self._result.config, self.layers)

    def merge(self, original: PreTrainedModel, student: PreTrainedModel, method: str) -> None:
        """Fill the student's heads; those that another method left are replaced."""
        for layer in self.layers:
            tensors = own_tensors(original, layer)
            groups = contiguous(layer.kv_heads, layer.groups)
            heads = gather(layer, tensors)
            if method == "mean":
                heads = dataclasses.replace(heads, keys="fixed", values="fixed")
            install(student.get_submodule(layer.module), scatter(layer, aligned(heads, groups), groups, tensors))

    def disguise(self, model: PreTrainedModel) -> None:
        """Make all heads of a group one head, and multiply each with random numbers that change nothing."""
        generator = torch.Generator().manual_seed(3)
        for layer in self.layers:
            tensors = own_tensors(model, layer)
            whole = unmerged(layer, tensors)
            heads = disguised(_repeated(gather(whole, tensors), layer), generator)
            same = tuple((head,) for head in range(layer.kv_heads))
            install(model.get_submodule(layer.module), scatter(whole, heads, same, tensors))


def _repeated(heads: AttentionHeads, layer: AttentionLayer) -> AttentionHeads:
    """The first key and value head of each group, in the place of all of its heads."""

    def repeat(heads_KN: Tensor) -> Tensor:
        return (
            heads_KN.unflatten(0, (layer.groups, -1))[:, :1]
            .expand(-1, layer.kv_heads // layer.groups, *[-1] * (heads_KN.dim() - 1))
            .flatten(0, 1)
        )

    gain = None if heads.k_gain_KE is None else repeat(heads.k_gain_KE)
    return dataclasses.replace(heads, k_KEX=repeat(heads.k_KEX), v_KFX=repeat(heads.v_KFX), k_gain_KE=gain)
