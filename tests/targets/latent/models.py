"""Tiny sources of latent attention, and their hosts in memory.

source(model, config)    what the package knows of a tiny model
whole_key(source, ...)   a rotary key with every plane of every KV head, at which nothing is lost
converted(model, ...)    the host of a model, fitted without text
"""

import json
from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from mha2gqa.heads.attention import NOTHING_KNOWN, AttentionHeads
from mha2gqa.model.architecture import Architecture
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.student import install, own_tensors
from mha2gqa.targets.latent.fit import fit
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.planes import plane_gains
from mha2gqa.targets.latent.rope import free_key
from tests.families.tiny import model_class_name


def architecture(config: PreTrainedConfig) -> Architecture:
    """What save_pretrained's config.json says."""
    return Architecture(
        json.loads(config.to_json_string(use_diff=False)) | {"architectures": [model_class_name(config.model_type)]}
    )


def heads_of(source: LatentSource, model: PreTrainedModel) -> list[AttentionHeads]:
    return [source.heads(layer, own_tensors(model, layer)) for layer in source.layers]


def whole_key(source: LatentSource, heads: Sequence[AttentionHeads]) -> RotaryKey:
    """Every plane of every KV head."""
    pairs = zip(heads, source.layers, strict=True)
    gains = [plane_gains(one, NOTHING_KNOWN, source.scaling(layer)) for one, layer in pairs if one.rotary.width]
    planes = len(source.rotary.frequencies) * max(len(one.k_KEX) for one in heads)
    return free_key(source.rotary, gains, planes, theta=source.theta, context=source.context)


def whole_latent(heads: Sequence[AttentionHeads]) -> int:
    """Room for every row of values, and of keys that are not rotated."""
    return max(
        len(one.v_KFX) * one.v_KFX.shape[1] + len(one.k_KEX) * (one.k_KEX.shape[1] - one.rotary.width) for one in heads
    )


def fitted_host(model: PreTrainedModel, host: LatentHost) -> PreTrainedModel:
    """The host in memory, every layer fitted without text."""
    source = host.source
    student = build_latent_student(model, host)
    for layer, heads in zip(source.layers, heads_of(source, model), strict=True):
        found = fit(heads, None, host.key, host.latent, source.scaling(layer))
        tensors = host.attention(layer, found.heads, NOTHING_KNOWN)
        install(student.get_submodule(layer.module), tensors)
    return student


def whole_host(model: PreTrainedModel) -> LatentHost:
    """The host of a model at which nothing is lost."""
    source = LatentSource.of(architecture(model.config))
    heads = heads_of(source, model)
    return LatentHost(source, whole_key(source, heads), whole_latent(heads), model.dtype)
