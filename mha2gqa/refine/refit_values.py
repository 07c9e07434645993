"""Refits a layer's shared values together with its output projection, so that it answers like the original.

Given its attention weights, a layer is linear in its values and linear in its output projection (`bilinear.py`). So its
values become those that serve the tokens that heads do attend to, and errors of heads are weighed together as they
are; a method must guess both. What heads make of the rows to mix from is computed by the family's own module, with as
many rows at a time in the place of its values as it has.

Legend: as in `heads/attention.py`, with G KV heads for K, N rows of a mixture.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mha2gqa.families.attention import gather
from mha2gqa.heads.attention import NOTHING_KNOWN
from mha2gqa.methods.aligned.basis import firm, towards
from mha2gqa.methods.aligned.values import leading_rows
from mha2gqa.refine.bilinear import Bilinear
from mha2gqa.refine.merge import Merged
from mha2gqa.refine.refit import of_projection, projected
from mha2gqa.refine.replay import Example
from mha2gqa.refine.student import install

_LEAST, _MOST = 2, 4
"""Rows of a mixture, in multiples of the values it makes. stories260K with one KV head loses 18 % of what the mean
does with 4, 19 % with 2, and 25 % when its outputs alone are refitted."""
_ALL = 8192
"""Rows of all query heads at most, but for `_LEAST`: the sum of their products is 0.5 GB then."""


@torch.no_grad()
def refit_values(
    module: nn.Module, output: str, examples: Sequence[Example], device: torch.device, merged: Merged
) -> None:
    """Refit a module's values and output projection on calls of the module and what is wanted of the projection.

    Args:
        module: The converted attention module, its queries and keys as merged; changed in place.
        output: Path of its output projection, a linear module.
        examples: Calls, and for each the output `[B, T, D]` that the projection should have.
        device: Where to compute.
        merged: The merge; its values are free.
    """
    rows_GNX, old_GFX, old_HDF = _rows(merged), merged.heads.v_KFX.double(), merged.heads.o_HDF.double()
    sums = _run(module, output, examples, device, merged, rows_GNX)
    start_GFN = torch.stack([_mixture(old, rows) for old, rows in zip(old_GFX, rows_GNX, strict=True)])
    mixing_GFN, output_DZ = sums.solve(start_GFN, old_HDF.transpose(0, 1).flatten(1))
    # (M P, O M⁻¹) is the same layer for any M. The search leaves P at any scale, so the new values are turned to where
    # the old ones were: channels keep their size for 16-bit weights and caches, and `distil` starts from a usual one.
    new_GFX = mixing_GFN @ rows_GNX.double()
    turn_GFF = torch.stack([towards(new, old[None]) for new, old in zip(new_GFX, old_GFX, strict=True)])
    new_HDF = output_DZ.unflatten(1, (len(old_HDF), -1)).transpose(0, 1)
    new_HDF = new_HDF @ torch.linalg.inv(turn_GFF).repeat_interleave(sums.shared, dim=0)
    dtype = merged.heads.v_KFX.dtype
    heads = replace(merged.heads, v_KFX=(turn_GFF @ new_GFX).to(dtype), o_HDF=new_HDF.to(dtype))
    install(module, merged.with_heads(heads))


def rows_of_mixtures(query_heads: int, width: int, members: int) -> int:
    """Return N, for values of F = `width` channels and groups of so many KV heads."""
    return min(members * width, max(_LEAST * width, min(_MOST * width, _ALL // query_heads)))


def _rows(merged: Merged) -> torch.Tensor:
    """Return what to mix values from, `[G, N, X]`: the rows of a group's heads, or as many leading mixtures of them."""
    heads, width = gather(merged.layer, merged.source), merged.heads.v_KFX.shape[1]
    inputs = (merged.statistics or NOTHING_KNOWN).like(heads.v_KFX).inputs
    count = rows_of_mixtures(merged.layer.query_heads, width, len(merged.groups[0]))
    # Of all R·F rows of a group, the mixtures that a merge would keep first; of the rest hardly anything is read.
    rows_GNX = torch.stack([leading_rows(heads.members(group), inputs, count) for group in merged.groups])
    size_GN1 = rows_GNX.square().mean(dim=-1, keepdim=True).sqrt()
    return rows_GNX / size_GN1.clamp(min=torch.finfo(size_GN1.dtype).tiny)  # 16-bit weights keep their range


def _mixture(values_FX: torch.Tensor, rows_NX: torch.Tensor) -> torch.Tensor:
    """Return the mixture of rows that is nearest to given values, fp64 `[F, N]`."""
    # Least squares: values of a merge lie in the span of their rows, but for the mixtures that `_rows` left out.
    rows = rows_NX.double()
    found: torch.Tensor = torch.linalg.solve(firm(rows @ rows.mT, rows_NX.dtype), rows @ values_FX.mT).mT
    return found


def _run(
    module: nn.Module,
    output: str,
    examples: Sequence[Example],
    device: torch.device,
    merged: Merged,
    rows_GNX: torch.Tensor,
) -> Bilinear:
    """Return the sums over all calls of what heads make of the rows."""
    heads, (groups, count) = merged.layer.query_heads, rows_GNX.shape[:2]
    width, outputs = merged.heads.v_KFX.shape[1], merged.heads.o_HDF.shape[1]
    # A value head of the result has F channels, so N rows are installed F at a time. Attention weights depend on
    # queries and keys alone: what the output projection is given then is, for each query head, s_h of those rows.
    parts = [merged.with_heads(replace(merged.heads, v_KFX=part)) for part in rows_GNX.split(width, dim=1)]
    sums = Bilinear.empty(heads, count, outputs, heads // groups, device)
    for call, wanted in examples:
        seen = []
        for part in parts:
            install(module, part)
            seen.append(projected(module, output, call, device).unflatten(1, (heads, -1)))
        sums.add(torch.cat(seen, dim=-1).flatten(1), of_projection(module, output, wanted, device))
    return sums
