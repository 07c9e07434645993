"""What a row of the table of families (`table.py`) may say of a model type.

`Family` is the row: where the numbers of KV heads stand, what the tensors mean that depend on them (`TensorRule`), what
may be done to the heads without changing what the model computes (`Freedoms`), which G the class allows, or why the
family cannot be converted. Every field has the value that most families have, so a row says only what is different.

No code of a family lives here or there: what a field means is up to the modules that read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mha2gqa.families.layouts import Layout, separate
from mha2gqa.heads.freedom import Freedom, Pairing

AllowedGroups: TypeAlias = Literal["divisors", "even", "ends"]
"""Divisors of K; even ones (heads are used in pairs); or only K and 1 (the config has but a switch)."""


@dataclass(frozen=True)
class TensorRule:
    """What a tensor is that depends on the number of KV heads."""

    source: Layout = separate
    """Order of its rows in a model with several KV heads."""
    multi_query: Layout | None = None
    """Order of its rows with one KV head, where it is another."""
    head_width: str = ""
    """Config key of one head's width, where layers differ in their number of KV heads."""
    fold: bool = False
    """Its columns, too, run over KV heads, and are summed where heads become one."""
    cached: bool = True
    """Its rows project the keys or values that the cache holds."""
    stacked: bool = False
    """One tensor per KV head; the pattern's group `head` is the head's number."""


@dataclass(frozen=True, kw_only=True)
class Freedoms:
    """What leaves a family's attention unchanged, as far as no module shows it.

    Norms with gains, the width of the rotation and clipping are read off the module and the config (`modules.py`).
    """

    keys: Freedom = "free"
    values: Freedom = "free"
    pairing: Pairing = "half"
    """Which rows of a key head rotate together."""
    followers: tuple[str, ...] = ()
    """Other parameters of the module with rows for each query head; they follow when heads are sorted."""
    bystanders: tuple[str, ...] = ()
    """Other parameters of the module that no order of heads concerns."""
    ordered: bool = False
    """Heads may not change places: position biases, kept or computed outside the module, know them by number."""
    whole_width: bool = False
    """Planes pair up over the whole head, also where only a part of them turns."""
    windows_rotate: bool = False
    """Only layers with a sliding window rotate."""
    unrotated_keys: Freedom | None = None
    """Freedom of the keys of layers that do not rotate, where it is another."""


NOT_KNOWN = Freedoms(keys="fixed", values="fixed", ordered=True)
"""Heads are averaged where they are, and the report says so: a wrong guess would ruin a model without an error."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: what is special about a model type."""

    counts: tuple[str, ...] = ("num_key_value_heads",)
    """Keys of the decoder's config that hold a number of KV heads; dots lead into nested objects, `*` into each object
    of a list, one for each layer."""
    shares: bool = False
    """The number is that of the query heads which share one KV head."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Count -> the kind of attention that it counts (`decoder`, `cross`, `encoder`), where each has its own."""
    encoder: bool = False
    """It reads all tokens at once and caches nothing, unless its config says `is_decoder`."""
    switch: bool = False
    """The count is a switch: true means one KV head, false means one per query head."""
    mirrors: tuple[str, ...] = ()
    """Keys beside a switch that hold the number itself, for engines that read that."""
    decoders: tuple[str, ...] = ()
    """Paths from the root config to the configs that own the counts; empty asks transformers."""
    tensors: Mapping[str, TensorRule] = field(default_factory=dict)
    """Pattern of a tensor's name -> rule, besides `names.PLAIN`: a regular expression for the whole components at the
    end of the name, from the attention module down."""
    freedom: Freedoms = NOT_KNOWN
    """What a method may do to its heads."""
    groups: AllowedGroups = "divisors"
    """Which G the class can run."""
    widest: int = 1
    """KV heads that the layer with the most has for each one that the config counts."""
    latent: bool = False
    """Multi-head latent attention: the cache holds a latent vector, not heads."""
    refusal: str = ""
    """Why the family cannot be converted; empty when it can."""
    refused_switches: Mapping[str, str] = field(default_factory=dict)
    """Config key -> why a model that sets it cannot be converted."""
