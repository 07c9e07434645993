"""Turns the tensors of an attention layer into heads, and heads into tensors.

`attention_layers` asks the blueprint which modules depend on the number of KV heads, the table how their
rows are ordered, and the module itself for its norms and its rotary embedding. `gather` and `scatter` then
need no name of a family. Tensors go by their names in the module tree, which are the same few for every
family, whatever a file calls them.

Not here: which freedom a family has (`freedom.py`), and what is done with it (`merging`).

Legend: as in `heads.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from mha2gqa.families.blueprint import Blueprint, ConfigJson, Shape, by_module
from mha2gqa.families.cache import is_cross_attention
from mha2gqa.families.changes import Change, find_changes
from mha2gqa.families.counts import Count, Decoder
from mha2gqa.families.freedom import FREEDOM, freedom_row
from mha2gqa.families.layouts import HeadRows
from mha2gqa.grouping import Groups
from mha2gqa.heads import AttentionHeads, Freedom, Rotary

_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))

Part: TypeAlias = Literal["q", "k", "v", "follower", "pooled"]
"""Whose rows: a query head's, key head's or value head's; what follows a query head; what is averaged like KV heads."""


@dataclass(frozen=True)
class Block:
    """Rows that one part has in one tensor, head by head."""

    name: str
    """Without the module's own."""
    part: Part
    before: torch.Tensor
    """Row numbers in the source's tensor, int64 `[heads, rows]`."""
    after: torch.Tensor
    """Row numbers in the result's."""
    fold: bool = False
    """Its columns run over KV heads, too."""


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """One attention module: its heads, how they lie in its tensors, and what may be done to them."""

    module: str
    """Path in the module tree."""
    query_heads: int
    kv_heads: int
    groups: int
    """KV heads of the result."""
    blocks: tuple[Block, ...]
    output: str
    """Name of the output projection, whose columns are the heads' values."""
    shapes: Mapping[str, Shape]
    """Tensor, without the module's own name -> its shape in the result."""
    stacked: tuple[tuple[str, ...], ...]
    """Tensors of which there is one for each KV head, averaged like them."""
    gains: tuple[str, str] | None
    """Gains of the norms over all queries and all keys."""
    rotary: Rotary
    keys: Freedom
    values: Freedom
    is_cross: bool
    """Keys and values read another sequence than the queries."""
    sortable: bool
    """Whether heads may change places: nothing in the module depends on their order."""

    @property
    def has_bias(self) -> bool:
        """Whether queries, keys or values have biases, which are one more input that is always 1."""
        return any(block.name.endswith("bias") and block.part in ("q", "k", "v") for block in self.blocks)

    def has(self, part: Part) -> bool:
        """Return whether a part has a projection of its own; values may be the keys before their norm."""
        return any(block.part == part for block in self.blocks)

    @property
    def changed(self) -> list[str]:
        """The tensors that a method changes, without the module's own name."""
        names = [block.name for block in self.blocks]
        names += [name for names in self.stacked for name in names if name in self.shapes]
        names += [self.output, f"{self.output.removesuffix('weight')}bias", *(self.gains or ())]
        return [name for name in dict.fromkeys(names) if name in self.shapes]

    @property
    def projections(self) -> tuple[str, str]:
        """The submodules whose inputs are those of the queries and of the keys and values."""
        names = {block.part: block.name.rpartition(".")[0] for block in self.blocks if block.name.endswith("weight")}
        return names["q"], names["k"]


def attention_layers(
    config_json: ConfigJson, source: Blueprint, targets: list[tuple[Count, int]]
) -> list[AttentionLayer]:
    """Return the attention layers that a change of the numbers of KV heads concerns, each module once.

    A module whose projections are not all found is left out: only its K and V can be pooled.

    Args:
        config_json: The config of the source.
        source: Its blueprint.
        targets: Each number of KV heads, and what it becomes.
    """
    layers: dict[int, AttentionLayer] = {}
    for count, heads in targets:
        changes = find_changes(config_json, source, by_module, count, heads)
        for module in dict.fromkeys(change.module(name) for change in changes for name in change.names):
            attention = source.model.get_submodule(module)
            layer = _layer(source, module, attention, changes, count)
            if layer is not None:
                layers.setdefault(id(attention), layer)
    order = {name: number for number, (name, _) in enumerate(source.model.named_modules(remove_duplicate=False))}
    return sorted(layers.values(), key=lambda layer: order[layer.module])


def gather(layer: AttentionLayer, tensors: Mapping[str, torch.Tensor]) -> AttentionHeads:
    """Return the heads of a layer, in fp32 for 16-bit tensors and in fp64 for others.

    Args:
        layer: The layer.
        tensors: Its tensors, without the module's own name; only those that hold heads are read.
    """
    rows = {part: _rows(layer, part, tensors) for part in ("q", "k", "v") if layer.has(part)}
    output = _wide(tensors[layer.output])
    width = output.shape[1] // layer.query_heads
    q_gain, k_gain = (_wide(tensors[name]) for name in layer.gains) if layer.gains else (None, None)
    return AttentionHeads(
        q_HEX=rows["q"],
        k_KEX=rows["k"],
        v_KFX=rows["v"] if "v" in rows else output.new_zeros(layer.kv_heads, width, rows["k"].shape[-1]),
        o_HDF=output.unflatten(1, (layer.query_heads, -1)).transpose(0, 1),
        rotary=layer.rotary,
        keys=layer.keys,
        values=layer.values,
        q_gain_HE=None if q_gain is None else q_gain.unflatten(0, (layer.query_heads, -1)),
        k_gain_KE=None if k_gain is None else k_gain.unflatten(0, (layer.kv_heads, -1)),
    )


def scatter(
    layer: AttentionLayer, heads: AttentionHeads, groups: Groups, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a merged layer, in the dtypes of the source's.

    Args:
        layer: The layer.
        heads: What `gather` gave, merged.
        groups: Source KV heads of each KV head of the result; what follows the query heads is sorted like them.
        tensors: The source's tensors.
    """
    parts = {"q": heads.q_HEX, "k": heads.k_KEX, "v": heads.v_KFX}
    order = query_order(groups, layer.query_heads // layer.kv_heads)
    result = {name: tensors[name] for name in layer.changed if name.startswith(layer.output.removesuffix("weight"))}
    for block in layer.blocks:
        source = tensors[block.name]
        target = result.setdefault(block.name, source.new_zeros(layer.shapes[block.name]))
        if block.part == "follower":
            target[block.after] = source[block.before[order]]
        elif block.part == "pooled":
            target[block.after] = _pooled(source, block, groups)
        else:
            inputs = source.shape[1] if source.dim() > 1 else 0
            rows = parts[block.part]
            target[block.after] = (rows[..., :inputs] if inputs else rows[..., -1]).to(source.dtype)
    for names in layer.stacked:
        for name, group in zip(names, groups, strict=False):
            result[name] = (
                torch.stack([tensors[names[head]] for head in group]).double().mean(dim=0).to(tensors[name].dtype)
            )
    output = tensors[layer.output]
    result[layer.output] = heads.o_HDF.transpose(0, 1).flatten(1).to(output.dtype)
    if layer.gains and heads.q_gain_HE is not None and heads.k_gain_KE is not None:
        for name, gain in zip(layer.gains, (heads.q_gain_HE, heads.k_gain_KE), strict=True):
            result[name] = gain.flatten().to(tensors[name].dtype)
    return result


def _pooled(source: torch.Tensor, block: Block, groups: Groups) -> torch.Tensor:
    """Return the mean of each group's rows; folded columns are summed over the groups' heads."""
    rows = source[block.before[torch.tensor(groups)]].double().mean(dim=1)
    if block.fold:
        columns = rows.unflatten(-1, (len(block.before), -1))[..., torch.tensor(groups), :]
        rows = columns.sum(dim=-2).flatten(-2)
    return rows.to(source.dtype)


def query_order(groups: Groups, shared: int) -> list[int]:
    """Return the source's query heads in the order of the groups; `shared` of them read one KV head."""
    return [head * shared + query for group in groups for head in group for query in range(shared)]


def _rows(layer: AttentionLayer, part: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the weights of a part's heads, and with biases anywhere in the layer one more column."""
    blocks = {block.name.rpartition(".")[2]: block for block in layer.blocks if block.part == part}
    weight = _wide(tensors[blocks["weight"].name][blocks["weight"].before])
    if not layer.has_bias:
        return weight
    bias = weight.new_zeros(*weight.shape[:2], 1)
    if "bias" in blocks:
        bias = tensors[blocks["bias"].name][blocks["bias"].before].to(weight)[..., None]
    return torch.cat([weight, bias], dim=-1)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32 if tensor.dtype.itemsize == 2 else torch.float64)


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
    output = next((f"{name}{end}" for name in _OUTPUTS for end in _ENDS if f"{name}{end}" in shapes), None)
    blocks = [block for name, (change, pair) in own.items() for block in _blocks(name, change, pair)]
    kv = [block for block in blocks if block.part == "k" and block.name.endswith("weight")]
    if output is None or len(kv) != 1:
        return None
    queries = count.decoder.query_heads
    if not any(block.part == "q" for block in blocks):
        blocks += _query_blocks(shapes, queries, kv[0].before.shape[1])
    row = freedom_row(count.decoder.config.model_type)
    used = {block.name for block in blocks} | {output, f"{output.removesuffix('weight')}bias"}
    followers = [name for name in row.followers if name in shapes]
    blocks += [_follower(name, shapes[name], queries) for name in followers]
    keys, values, gains, norms = _freedom(attention, shapes, count.decoder, kv[0].before.shape)
    blocks = [block for block in blocks if gains is None or block.name not in gains]
    if not any(block.part == "v" for block in blocks):
        keys, values = "fixed", "fixed"
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
        gains=gains,
        rotary=_rotary(source.model, module, count.decoder, kv[0].before.shape[1]),
        keys=keys,
        values=values,
        is_cross=is_cross_attention(module),
        sortable=_is_sortable(count.decoder.config, set(shapes) - used - set(followers) - norms),
    )


_ENDS = (".weight", ".linear.weight")


def _is_sortable(config: Any, unexplained: set[str]) -> bool:
    """Return whether heads may change places: the family is known, and so is every parameter of the module."""
    return config.model_type in FREEDOM and not unexplained and not getattr(config, "alibi", False)


def _blocks(name: str, change: Change, shapes: tuple[Shape | None, Shape | None]) -> list[Block]:
    """Return the blocks of q, k and v in a tensor that depends on the number of KV heads."""
    before, after = shapes
    if before is None or after is None or change.rule.stacked:
        return []
    old, new = change.layouts
    runs, new_runs = old(before[0], change.before), new(after[0], change.after)
    own = {"k_proj": "k", "v_proj": "v"}.get(name.partition(".")[0], "pooled")
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
    for name in ("q_proj.weight", "q_proj.linear.weight", "q_proj.bias"):
        if name in shapes:
            rows = torch.arange(shapes[name][0]).view(queries, -1)
            blocks.append(Block(name, "q", rows[:, :width], rows[:, :width]))
            if rows.shape[1] > width:
                blocks.append(Block(name, "follower", rows[:, width:], rows[:, width:]))
    return blocks


def _follower(name: str, shape: Shape, queries: int) -> Block:
    rows = torch.arange(shape[0]).view(queries, -1)
    return Block(name, "follower", rows, rows)


def _freedom(
    attention: nn.Module, shapes: Mapping[str, Shape], decoder: Decoder, keys_shape: torch.Size
) -> tuple[Freedom, Freedom, tuple[str, str] | None, set[str]]:
    """Return the freedom of keys and values, the gains of norms over all heads, and norms that no order concerns."""
    row = freedom_row(decoder.config.model_type)
    shares_kv = getattr(decoder.config, "num_kv_shared_layers", 0)
    if (row.keys, row.values) == ("fixed", "fixed") or shares_kv:
        return "fixed", "fixed", None, set()
    if _clip(decoder.config) is not None:
        return "signed", "signed", None, set()
    width = keys_shape[1]
    for names in _NORMS:
        present = [name for name in shapes if name.startswith(tuple(f"{norm}." for norm in names))]
        weights = (f"{names[0]}.weight", f"{names[1]}.weight")
        if not present:
            continue
        if set(present) != set(weights) or len(shapes[weights[1]]) != 1:
            return "fixed", row.values, None, set()
        if shapes[weights[1]] == (width,):
            return "normed", row.values, None, set(present)
        return "scaled", row.values, weights, set(present)
    return row.keys, row.values, None, set()


def _clip(config: Any) -> float | None:
    inner = getattr(config, "attn_config", None)
    value: float | None = getattr(config, "clip_qkv", None) or getattr(inner, "clip_qkv", None)
    return value


def _rotary(model: nn.Module, module: str, decoder: Decoder, width: int) -> Rotary:
    """Return the rotation of a layer's heads, by the frequencies that the nearest rotary embedding holds."""
    row = freedom_row(decoder.config.model_type)
    if getattr(decoder.config, "alibi", False):
        return Rotary(0)
    kind = _layer_type(model.get_submodule(module), decoder.config)
    path = module
    while True:
        found = _frequencies(model.get_submodule(path), kind)
        if found is not None:
            return Rotary(width if row.whole_width else min(2 * found, width), row.pairing)
        if not path:
            return Rotary(0)
        path = path.rpartition(".")[0]


def _frequencies(owner: nn.Module, kind: str) -> int | None:
    """Return the number of frequencies of a rotary embedding that is a child of `owner`."""
    for child in owner.children():
        buffers = dict(child.named_buffers(recurse=False))
        for name in (f"{kind}_inv_freq", "inv_freq"):
            if name in buffers:
                return int(buffers[name].shape[-1])
    return None


def _layer_type(attention: nn.Module, config: Any) -> str:
    kinds, layer = getattr(config, "layer_types", None), getattr(attention, "layer_idx", None)
    return str(kinds[layer]) if kinds and layer is not None and layer < len(kinds) else ""
