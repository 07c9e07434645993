"""Where the parameters of a model are: attention, MLP, embedding, norm, other; layer by layer.

Counted on the meta device, so it costs no memory and needs no weights. Tied parameters count once.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from mha2gqa.families.blueprint import Blueprint
from mha2gqa.families.cache import CacheLayer
from mha2gqa.families.names import MLP

Role: TypeAlias = Literal["attention", "mlp", "embedding", "norm", "other"]


@dataclass(frozen=True)
class Anatomy:
    """Numbers of parameters."""

    total: int
    by_role: dict[Role, int]
    layers: dict[str, dict[Role, int]]
    """Path of a layer -> parameters by role; layers of the model that owns the KV heads."""


def anatomy(plan: Blueprint, cached: list[CacheLayer]) -> Anatomy:
    """Count the parameters of a blueprint.

    Args:
        plan: The blueprint.
        cached: Its layers with a KV cache; their modules are attention whatever their class is called.
    """
    attention = {layer.module for layer in cached} | _attention_modules(plan.model)
    embeddings = _embedding_modules(plan)
    by_role: Counter[Role] = Counter()
    layers: dict[str, Counter[Role]] = {}
    for name, parameter in plan.model.named_parameters():
        layer, inner = _split_layer(name)
        role = _role(plan.model, name, inner, attention, embeddings)
        by_role[role] += parameter.numel()
        if layer:
            layers.setdefault(layer, Counter())[role] += parameter.numel()
    owning = {layer.module for layer in cached} or attention
    owners = {_split_layer(f"{module}.")[0].rpartition(".")[0] for module in owning}
    kept = {layer: dict(counts) for layer, counts in layers.items() if layer.rpartition(".")[0] in owners}
    return Anatomy(sum(by_role.values()), dict(by_role), kept)


def _split_layer(name: str) -> tuple[str, str]:
    """Split `model.layers.3.mlp.up_proj.weight` into `model.layers.3` and `mlp.up_proj.weight`."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return "", name
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :])


def _role(model: nn.Module, name: str, inner: str, attention: set[str], embeddings: set[str]) -> Role:
    owner = name.rpartition(".")[0]
    if "norm" in type(model.get_submodule(owner)).__name__.lower():
        return "norm"
    if owner in embeddings:
        return "embedding"
    if any(name.startswith(f"{module}.") for module in attention):
        return "attention"
    is_mlp = inner != name and any(word in inner.lower() for word in MLP)
    return "mlp" if is_mlp else "other"


def _attention_modules(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__.endswith("Attention")}


def _embedding_modules(plan: Blueprint) -> set[str]:
    head = plan.model.get_output_embeddings()
    return {name for name, module in plan.model.named_modules() if isinstance(module, nn.Embedding) or module is head}
