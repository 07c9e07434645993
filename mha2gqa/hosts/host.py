"""What a host is: another class in which a model whose own class knows only MHA is written.

A `Host` says how a source's config and tensors become those of a class with a number of KV heads, G = K and every
logit equal. `rehost.py` turns that into an ordinary checkpoint of the host's class, which everything else (plan,
methods, writer, verify) then converts as any other. A tensor that is only renamed keeps its bytes in the source's
file; one that is cut, re-ordered or folded is a `Recipe` with `make`, computed when its bytes are read.

NEW HOST = ONE ROW of `choice.py`, of either kind:

- A class of transformers (`phi`, `starcoder2`, ...): the result loads everywhere without remote code.
- A class of `mha2gqa.shipped`: `shipped=True`, `model_type` a key of `shipped.MODULES`, tensors usually the source's
  own byte for byte (`same_tensors`), config usually the source's plus the number of KV heads (the engine sets
  `model_type`, `architectures` and `auto_map`, and adds the file to those that are written). Its `model_type` needs a
  row of `families/table.py` where K and V are not plain `k_proj` and `v_proj`.

Several hosts of a source are tried in order; the first without an objection is taken, so native ones stand first.
This file knows no model type and reads no tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mha2gqa.families.blueprint import Blueprint, ConfigJson

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

Make: TypeAlias = "Callable[..., torch.Tensor]"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One tensor of the host's class, and what it is made of."""

    name: str
    """In the module tree of the host's language model, with head and base model's prefix."""
    sources: tuple[str, ...]
    """Tensors of the source, by their names in its module tree; the first decides dtype, shard and place."""
    make: "Make | None" = None
    """Takes the sources in the dtype of the file, and gives the tensor, rounded to it once at last; None takes the
    bytes of the one source as they are."""
    fill: float | None = None
    """The tensor holds this number everywhere; the source is not read."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One way to express a source's class in another."""

    model_type: str
    """Of the host's class."""
    config: "Callable[[PreTrainedConfig], ConfigJson]"
    """Gives the keys of the host's config.json that its class needs, with K = H, from the source's config as
    transformers reads it. Token ids, dtype, vocabulary, tying and initialisation are taken over by the engine, unless
    they are among the keys."""
    tensors: Callable[[Blueprint], Iterable[Recipe]]
    """Gives a recipe for every tensor of the host, from the source's blueprint. Those that the host's class does not
    have (a bare model has no head, a tied one no output matrix) are left out by the engine. Names are those of the
    language model also where the source is bare."""
    objection: "Callable[[PreTrainedConfig, int], str]" = lambda config, groups: ""
    """Says why this config at G KV heads cannot be expressed; empty when it can."""
    architectures: Mapping[str, str]
    """Class that wrote the source -> class of the host; a source of another class is refused."""
    modules: tuple[str, str] | None = None
    """Attention modules whose outputs are equal: the source's name and the host's, `{}` for the layer's number, below
    the base model; None where the names are the same."""
    last_differs: bool = False
    """The last layer's attention output is another, because a bias is added elsewhere."""
    shipped: bool = False
    """The class is one of `mha2gqa.shipped`."""


def same_tensors(source: Blueprint) -> Iterable[Recipe]:
    """Give the source's own tensors under their own names."""
    return (Recipe(name=name, sources=(name,)) for name in source.module_shapes)
