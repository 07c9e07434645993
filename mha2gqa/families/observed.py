"""What a module and its config show of its heads' freedom: norms, clipping, rotary embedding.

The rest of a layer's freedom is the family's row in `table.py`.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from mha2gqa.families.counts import Decoder
from mha2gqa.families.names import QUERY_AND_KEY_NORMS
from mha2gqa.families.row import Freedoms
from mha2gqa.heads.attention import Freedom, Rotary


@dataclass(frozen=True)
class Observed:
    """The freedom of a layer's heads."""

    keys: Freedom
    values: Freedom
    gains: tuple[str, str] | None = None
    """Gains of norms over all queries and all keys."""
    norms: frozenset[str] = frozenset()
    """Parameters of norms that no order of heads concerns."""


def observe(attention: nn.Module, decoder: Decoder, width: int) -> Observed:
    """Return the freedom of a layer's heads.

    Args:
        attention: The module.
        decoder: The part of the model that it belongs to.
        width: Rows of a key head.
    """
    row = decoder.family.freedom
    shapes = {name: tuple(parameter.shape) for name, parameter in attention.named_parameters()}
    shares_kv = getattr(decoder.config, "num_kv_shared_layers", 0)
    if (row.keys, row.values) == ("fixed", "fixed") or shares_kv:
        return Observed("fixed", "fixed")
    if _clip(decoder.config) is not None:
        return Observed("signed", "signed")
    for names in QUERY_AND_KEY_NORMS:
        present = [name for name in shapes if name.startswith(tuple(f"{norm}." for norm in names))]
        weights = (f"{names[0]}.weight", f"{names[1]}.weight")
        if not present:
            continue
        if set(present) != set(weights) or len(shapes[weights[1]]) != 1:
            return Observed("fixed", row.values)
        if shapes[weights[1]] == (width,):
            return Observed("normed", row.values, None, frozenset(present))
        return Observed("scaled", row.values, weights, frozenset(present))
    keys = row.keys if row.unrotated_keys is None or rotates(attention, row) else row.unrotated_keys
    return Observed(keys, row.values)


def _clip(config: Any) -> float | None:
    inner = getattr(config, "attn_config", None)
    value: float | None = getattr(config, "clip_qkv", None) or getattr(inner, "clip_qkv", None)
    return value


def rotates(attention: nn.Module, row: Freedoms) -> bool:
    """Return whether a layer of a model with rotary embedding rotates its heads: some families leave some out."""
    if not getattr(attention, "use_rope", True):
        return False
    has_window = getattr(attention, "sliding_window", None) is not None
    return not row.windows_rotate or has_window or getattr(attention, "force_rope", False)


def observe_rotary(model: nn.Module, module: str, decoder: Decoder, width: int) -> Rotary:
    """Return the rotation of a layer's heads, by the frequencies that the nearest rotary embedding holds."""
    row = decoder.family.freedom
    if getattr(decoder.config, "alibi", False) or not rotates(model.get_submodule(module), row):
        return Rotary(0)
    kind = _layer_type(model.get_submodule(module), decoder.config)
    path = module
    while True:
        found = _frequencies(model.get_submodule(path), kind)
        if found is not None:
            turned = width if row.whole_width else min(2 * len(found), width)
            known = found if 2 * len(found) == turned else ()
            both_ways = not getattr(model.get_submodule(module), "is_causal", False)
            return Rotary(turned, row.pairing, known, both_ways)
        if not path:
            return Rotary(0)
        path = path.rpartition(".")[0]


def _frequencies(owner: nn.Module, kind: str) -> tuple[float, ...] | None:
    """Return the frequencies of a rotary embedding that is a child of `owner`."""
    for child in owner.children():
        buffers = dict(child.named_buffers(recurse=False))
        for name in (f"{kind}_inv_freq", "inv_freq"):
            if name in buffers:
                made: nn.Module = type(child)(child.config)  # with numbers: the blueprint's has none
                return tuple(made.get_buffer(name).double().tolist())
    return None


def _layer_type(attention: nn.Module, config: Any) -> str:
    kinds, layer = getattr(config, "layer_types", None), getattr(attention, "layer_idx", None)
    return str(kinds[layer]) if kinds and layer is not None and layer < len(kinds) else ""
