"""A source, and the host that it becomes: everything that is needed to write one, layer by layer.

source = LatentSource.of(architecture)            refuses what cannot be written
host = LatentHost(source, key, latent)            for a rotary key and a width C
host.model, host.attention(...), host.others()    its config and tensors
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from mha2gqa.families.attention import AttentionLayer, gather
from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.hosts.host import Recipe
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.latent.config import HostShape, host_config, host_shape
from mha2gqa.targets.latent.form import LatentHeads, RotaryKey
from mha2gqa.targets.latent.linear import linear
from mha2gqa.targets.latent.sources import Facts, facts, rotary_size, scaling, source_layers, whole, whole_of
from mha2gqa.targets.latent.tensors import Folding, attention_tensors, other_tensors
from mha2gqa.targets.latent.widths import Whole


@dataclass(frozen=True)
class LatentSource:
    """A model that can be written in latent attention."""

    model: Architecture
    layers: tuple[AttentionLayer, ...]
    """First to last."""
    facts: Facts

    @classmethod
    def of(cls, model: Architecture) -> "LatentSource":
        """Return what is known of a source.

        Raises:
            FamilyError: It cannot be written in latent attention.
            CheckpointError: Its config is malformed.
        """
        whole(model)
        return cls(model, tuple(source_layers(model)), facts(model.blueprint))

    @property
    def whole(self) -> Whole:
        """What it caches for a token in a layer."""
        return whole_of(self.layers)

    @property
    def rotary(self) -> Rotary:
        """The rotation of the layers that rotate."""
        return next((layer.rotary for layer in self.layers if layer.rotary.width), self.layers[0].rotary)

    @property
    def context(self) -> int:
        """Tokens that the model reads."""
        config: Any = self.model.config
        return int(config.max_position_embeddings)

    @property
    def theta(self) -> float:
        """Base of its plain rotary speeds."""
        parameters: Mapping[str, Any] = self.model.config.rope_parameters or {}
        return float(parameters.get("rope_theta", 10000.0))

    def heads(self, layer: AttentionLayer, tensors: Mapping[str, torch.Tensor]) -> AttentionHeads:
        """Return the heads of a layer; queries take up what the rotary embedding multiplies with.

        Args:
            layer: The layer.
            tensors: Its tensors, without the module's own name.
        """
        heads = gather(layer, tensors)
        size = rotary_size(self.model.blueprint)
        if size == 1 or not heads.rotary.width:
            return heads
        q_HEX = heads.q_HEX.clone()
        q_HEX[:, : heads.rotary.width] *= size**2  # queries and keys are both multiplied
        return replace(heads, q_HEX=q_HEX)

    def scaling(self, layer: AttentionLayer) -> float:
        """Return what a layer's scores are multiplied with before the softmax."""
        return scaling(self.model.blueprint, layer)


@dataclass(frozen=True)
class LatentHost:
    """The host of a source for one rotary key and one width of the latent."""

    source: LatentSource
    key: RotaryKey
    latent: int
    """C."""
    dtype: torch.dtype = torch.float32
    """Of the host's file."""
    tokenizer_class: str | None = None
    """What loaders of the tokenizer are to take, where the model type told them."""

    @cached_property
    def shape(self) -> HostShape:
        """Widths of its attention."""
        return host_shape(list(self.source.layers), self.key, self.latent)

    @cached_property
    def model(self) -> Architecture:
        """What its config says."""
        source = self.source.model
        config = host_config(source.config_json, source.blueprint, self.shape, self.key)
        named = {} if self.tokenizer_class is None else {"tokenizer_class": self.tokenizer_class}
        return Architecture(config | named)

    def attention(self, layer: AttentionLayer, heads: LatentHeads, known: Statistics) -> dict[str, torch.Tensor]:
        """Return the tensors of a layer's attention module but for a bias of its output, rounded to the file's dtype.

        Args:
            layer: The layer of the source; the host's module has the same name.
            heads: The fitted layer.
            known: Of its inputs.
        """
        scale, fold = self.source.scaling(layer), Folding.of(self.source.facts)
        tensors = attention_tensors(heads, known, self.shape, scale, fold, linear(self.dtype))
        return {name: tensor.to(self.dtype) for name, tensor in tensors.items()}

    def others(self) -> Iterator[Recipe]:
        """Give all other tensors, each with what it is made of."""
        return other_tensors(self.source.model.blueprint, self.source.facts, self.shape, linear(self.dtype))
