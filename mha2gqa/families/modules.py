"""Finds the attention layers that a change of the number of KV heads concerns, and how their heads lie.

`attention_layers` asks the blueprint which modules depend on the number, the table how their rows are ordered,
and the module and its config for what they show of its heads' freedom: norms, clipping, rotary embedding (`observe`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mha2gqa.families.attention import AttentionLayer, Block, Part
from mha2gqa.families.blueprint import Blueprint, Shape
from mha2gqa.families.cache import is_cross_attention
from mha2gqa.families.changes import Change
from mha2gqa.families.counts import Count, Decoder
from mha2gqa.families.layouts import HeadRows
from mha2gqa.families.names import KEYS_AND_VALUES, OUTPUTS, QUERIES, QUERY_AND_KEY_NORMS, WEIGHTS
from mha2gqa.families.row import Freedoms
from mha2gqa.heads.attention import Freedom, Rotary


def attention_layers(source: Blueprint, moved: Iterable[tuple[Count, list[Change]]]) -> list[AttentionLayer]:
    """Return the attention layers that a change of the numbers of KV heads concerns, each module once.

    A module whose projections are not all found is left out: only its K and V can be pooled.

    Args:
        source: The blueprint.
        moved: Each number of KV heads that changes, and what that changes in the module tree.
    """
    layers: dict[int, AttentionLayer] = {}
    for count, changes in moved:
        for module in dict.fromkeys(change.module(name) for change in changes for name in change.names):
            attention = source.model.get_submodule(module)
            layer = _layer(source, module, attention, changes, count)
            if layer is not None:
                layers.setdefault(id(attention), layer)
    order = {name: number for number, (name, _) in enumerate(source.model.named_modules(remove_duplicate=False))}
    return sorted(layers.values(), key=lambda layer: order[layer.module])


def _layer(
    source: Blueprint, module: str, attention: nn.Module, changes: list[Change], count: Count
) -> AttentionLayer | None:
    own = {
        name.removeprefix(f"{module}."): (change, shapes)
        for change in changes
        for name, shapes in change.names.items()
        if change.module(name) == module
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in attention.named_parameters()}
    output = next((f"{name}{end}" for name in OUTPUTS for end in WEIGHTS if f"{name}{end}" in shapes), None)
    blocks = [block for name, (change, pair) in own.items() for block in _blocks(name, change, pair)]
    kv = [block for block in blocks if block.part == "k" and block.name.endswith("weight")]
    if output is None or len(kv) != 1:
        return None
    queries = count.decoder.query_heads
    if not any(block.part == "q" for block in blocks):
        blocks += _query_blocks(shapes, queries, kv[0].before.shape[1])
    freedom = count.decoder.family.freedom
    used = {block.name for block in blocks} | {output, f"{output.removesuffix('weight')}bias"}
    followers = [name for name in freedom.followers if name in shapes]
    blocks += [_follower(name, shapes[name], queries) for name in followers]
    seen = observe(attention, count.decoder, kv[0].before.shape[1])
    blocks = [block for block in blocks if seen.gains is None or block.name not in seen.gains]
    if not any(block.part == "v" for block in blocks):
        seen = replace(seen, keys="fixed", values="fixed")
    changed = {name: after for name, (_, (_, after)) in own.items() if after is not None}
    dropped = {name for name, (_, (_, after)) in own.items() if after is None}
    return AttentionLayer(
        module=module,
        query_heads=queries,
        kv_heads=len(kv[0].before),
        groups=len(kv[0].after),
        blocks=tuple(blocks),
        output=output,
        shapes={name: shape for name, shape in (shapes | changed).items() if name not in dropped},
        stacked=_stacked(own, len(kv[0].before)),
        gains=seen.gains,
        rotary=observe_rotary(source.model, module, count.decoder, kv[0].before.shape[1]),
        keys=seen.keys,
        values=seen.values,
        is_cross=is_cross_attention(module),
        sortable=_is_sortable(count.decoder, set(shapes) - used - {*followers, *freedom.bystanders} - seen.norms),
    )


def _is_sortable(decoder: Decoder, unexplained: set[str]) -> bool:
    """Return whether heads may change places: the family allows it, and every parameter of the module is known."""
    is_ordered = decoder.family.freedom.ordered or getattr(decoder.config, "alibi", False)
    return not unexplained and not is_ordered


def _blocks(name: str, change: Change, shapes: tuple[Shape | None, Shape | None]) -> list[Block]:
    """Return the blocks of q, k and v in a tensor that depends on the number of KV heads."""
    before, after = shapes
    if before is None or after is None or change.rule.stacked:
        return []
    old, new = change.layouts
    runs, new_runs = old(before[0], change.before), new(after[0], change.after)
    own: Part = KEYS_AND_VALUES.get(name.rpartition(".")[0].removesuffix(".linear"), "pooled")
    parts = {"kv": own if change.rule.cached else "pooled"}
    rows, new_rows = _head_rows(runs), _head_rows(new_runs)
    return [
        Block(name, parts.get(part, part), rows[part], new_rows[part], change.rule.fold)  # type: ignore[arg-type]
        for part in rows
    ]


def _stacked(
    own: Mapping[str, tuple[Change, tuple[Shape | None, Shape | None]]], heads: int
) -> tuple[tuple[str, ...], ...]:
    """Return the names of tensors that stand for one KV head each, a tuple for each kind, in the order of the heads."""
    matches = [change.pattern.search(name) for name, (change, _) in own.items() if change.rule.stacked]
    ends = dict.fromkeys(
        (match.string[: match.start("head")], match.string[match.end("head") :]) for match in matches if match
    )
    return tuple(tuple(f"{start}{head}{end}" for head in range(heads)) for start, end in ends)


def _head_rows(runs: list[HeadRows]) -> dict[str, torch.Tensor]:
    """Return the row numbers of each part's heads, in the order of the heads."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    start = 0
    for run in runs:
        found.setdefault(run.part, {})[run.head] = torch.arange(start, start + run.count)
        start += run.count
    return {part: torch.stack([heads[head] for head in sorted(heads)]) for part, heads in found.items()}


def _query_blocks(shapes: Mapping[str, Shape], queries: int, width: int) -> list[Block]:
    """Return the blocks of a query projection of its own; rows beyond a head's width are its gate, which follows it."""
    blocks = []
    for name in (f"{query}{end}" for query in QUERIES for end in (*WEIGHTS, ".bias")):
        if name in shapes:
            rows = torch.arange(shapes[name][0]).view(queries, -1)
            blocks.append(Block(name, "q", rows[:, :width], rows[:, :width]))
            if rows.shape[1] > width:
                blocks.append(Block(name, "follower", rows[:, width:], rows[:, width:]))
    return blocks


def _follower(name: str, shape: Shape, queries: int) -> Block:
    rows = torch.arange(shape[0]).view(queries, -1)
    return Block(name, "follower", rows, rows)


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
