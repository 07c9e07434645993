"""Turns the tensors of an attention layer into heads, and heads into tensors.

`gather` and `scatter` know only rows: which ones belong to which head of which part. Where that comes from is
`modules.py`'s. Tensors go by their names in the module tree, which are the same few for every family, whatever a
file calls them. What is done with the heads is up to a method.

Legend: as in `heads/attention.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from mha2gqa.families.blueprint import Shape
from mha2gqa.heads.attention import AttentionHeads, Freedom, Rotary
from mha2gqa.heads.grouping import Groups

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
    def inputs(self) -> int:
        """How many inputs the keys have, the constant one of biases not among them."""
        return next(self.shapes[one.name][-1] for one in self.blocks if one.part == "k" and one.name.endswith("weight"))

    @property
    def projections(self) -> tuple[str, str]:
        """The submodules whose inputs are those of the queries and of the keys and values."""
        names = {block.part: block.name.rpartition(".")[0] for block in self.blocks if block.name.endswith("weight")}
        return names["q"], names["k"]


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
    result[layer.output] = heads.o_HDF.to(output.dtype).transpose(0, 1).flatten(1)
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
