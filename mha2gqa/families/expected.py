"""The form of what transformers expects on disk for a config, and how a file may spell it. No weights, and no torch.

A file may name its tensors as transformers writes them (`shapes`), as the module tree does (`module_shapes`), either
with or without the base model's prefix, and partly as former versions did, which transformers renames when it loads
(`LayerNorm.gamma`); `find_spelling` tells which.

This file knows nothing about families; it never reads a tensor. Who fills the form is `blueprint.py`'s.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Shape: TypeAlias = tuple[int, ...]
ConfigJson: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """What the class says of a parameter."""

    shape: Shape
    kind: Literal["", "norm", "embedding", "attention"]
    """Of the module that has it, as far as its class tells: the embedding is the output projection, too."""


@dataclass(frozen=True)
class Attention:
    """What the class says of a module that has keys and values."""

    layer: int | None = None
    """Its number in the cache."""
    shares: bool = False
    """Whether it reads the keys and values of another layer."""
    keys_are_values: bool = False
    """Whether it has no projection of values, and caches its keys a second time."""


class Blueprint(ABC):
    """The expected tensors of one config. What has no other way to be said asks transformers, once: `model`."""

    architecture: str
    """The name of the model class."""
    prefix: str
    """What the base model is called in it."""
    is_base: bool
    """Whether it is the base model."""
    final_norm: str
    """The class of the norm before the output projection of a model like Llama; empty elsewhere."""
    is_like_llama: bool
    """Whether it is known that all layers mix their keys and values freely, and rotate all of each key."""
    settings: "PreTrainedConfig"
    """What is read of the config; not for transformers itself."""
    shapes: Mapping[str, Shape]
    """Name in a file that `save_pretrained` writes -> shape."""
    module_shapes: Mapping[str, Shape]
    """Name in the module tree -> shape."""

    @functools.cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules that have tensors, themselves or below them, in the order of the module tree."""
        paths = (name.split(".")[:-1] for name in self.module_shapes)
        return tuple(dict.fromkeys(".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)))

    @property
    @abstractmethod
    def config(self) -> "PreTrainedConfig":
        """The config as transformers reads it."""

    @property
    @abstractmethod
    def model(self) -> "PreTrainedModel":
        """The model on the meta device: modules and shapes, no memory."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Parameter]:
        """Name in the module tree -> what is trained; what is tied counts once."""

    @abstractmethod
    def attention(self, module: str) -> Attention:
        """Return what a module says of its attention, by its path in the module tree."""

    @abstractmethod
    def filed(self, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Return tensors of the module tree under the names, and in the form, that `save_pretrained` writes."""

    @abstractmethod
    def filed_names(self) -> Mapping[str, str]:
        """Return the name in such a file of each tensor of the module tree that has one of its own there."""

    @abstractmethod
    def modern(self, names: AbstractSet[str]) -> Mapping[str, str]:
        """Return the names that transformers takes those of former versions for."""


@dataclass(frozen=True)
class Spelling:
    """A way to name tensors in a file; calling it with a blueprint gives file name -> shape."""

    attribute: Literal["shapes", "module_shapes"]
    """As transformers writes them, or as in the module tree."""
    prefix: str = ""
    """The base model's prefix, where the file has it and transformers' names have not, or the reverse."""
    adds: bool = False
    """The file has the prefix."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Names that would be there so far, and the former ones that the file has in their place."""

    def __call__(self, plan: Blueprint) -> dict[str, Shape]:
        """Return the names and shapes of a blueprint in this spelling."""
        shapes: Mapping[str, Shape] = getattr(plan, self.attribute)
        is_same = not (self.prefix or self.renamed)
        return dict(shapes) if is_same else {self.named(name): shape for name, shape in shapes.items()}

    def write(self, plan: Blueprint, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Return tensors of the module tree under the names, and in the form, that a file has them in."""
        written = plan.filed(tensors) if self.attribute == "shapes" else tensors
        return {self.named(name): tensor for name, tensor in written.items()}

    @functools.cached_property
    def _former(self) -> Mapping[str, str]:
        return dict(self.renamed)

    def named(self, name: str) -> str:
        """Return what a file in this spelling calls a tensor."""
        known = self.prefix + name if self.adds else name.removeprefix(self.prefix)
        return self._former.get(known, known)


by_module = Spelling("module_shapes")
"""Names as in the module tree."""


def find_spelling(plan: Blueprint, names: AbstractSet[str]) -> Spelling:
    """Return the spelling of tensor names that fits the most of `names`, the names in a file."""
    prefix = f"{plan.prefix}."
    attributes: tuple[Literal["shapes", "module_shapes"], ...] = ("shapes", "module_shapes")
    spellings = [
        spelling
        for attribute in attributes
        for spelling in (Spelling(attribute), Spelling(attribute, prefix), Spelling(attribute, prefix, adds=True))
    ]
    best = max(spellings, key=lambda spelling: fit(plan, spelling, names))
    known = best(plan).keys()
    if known <= names or names <= known:
        return best  # nothing is left to be told from names of former versions
    modern = plan.modern(names)
    former = [replace(one, renamed=_former(one(plan).keys(), names, modern)) for one in spellings]
    return max((best, *former), key=lambda spelling: fit(plan, spelling, names))


def fit(plan: Blueprint, spelling: Spelling, names: AbstractSet[str]) -> int:
    """Return how many of `names`, the names in a file, are those of the model in a spelling."""
    return len(names & spelling(plan).keys())


def _former(
    expected: AbstractSet[str], names: AbstractSet[str], modern: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return what is expected and not in a file, and which name of the file transformers takes for it."""
    found: dict[str, str] = {}
    for name in sorted(names - expected):
        new = modern[name]
        if new in expected and new not in names:
            found.setdefault(new, name)
    return tuple(found.items())
