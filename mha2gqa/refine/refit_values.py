"""Refits a layer's shared values together with its output projection, so that it answers like the original.

Given its attention weights, a layer is linear in its values and linear in its output projection. So its values become
those that serve the tokens that heads do attend to, and errors of heads are weighed together as they are; a method must
guess both. What heads make of the rows to mix from is computed by the family's own module, with as many rows at a time
in the place of its values as it has.

With s_h what query head h makes of the N rows from which the value head of its group g is mixed, P_g the mixture and
O_h what reads it, an attention layer gives Σ_h O_h P_g s_h. Sums over tokens of s sᵀ and y sᵀ are all it takes to find,
for wanted outputs y, P for a given O by conjugate gradients, and O for a given P by ridge regression (`Bilinear`).

These sums are the dear part, and each token tells the mixtures as much as y has entries: where M is large they are
taken over `_TOKENS` alone. Over the others the output projection alone is fitted, at last, to the values that were
found.

Legend: as in `heads/attention.py`, with G KV heads for K, N rows of a mixture, M = H·N of all heads, Z = H·F, B tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mha2gqa.families.attention import gather
from mha2gqa.heads.attention import NOTHING_KNOWN
from mha2gqa.heads.metric import symmetric_product
from mha2gqa.methods.aligned.basis import firm, towards
from mha2gqa.methods.aligned.distances import own_grams
from mha2gqa.methods.aligned.values import leading_rows
from mha2gqa.refine.merge import Merged
from mha2gqa.refine.refit import Linear, of_projection, projected
from mha2gqa.refine.replay import Example
from mha2gqa.refine.student import install

_ENOUGH = 0.002
"""The search ends when a round gains less than this share of what is still lost on text kept aside."""
_ROUNDS = 30
_STEPS = 2
"""Of conjugate gradients in a round, which go on from the last round's mixtures. Of SmolLM2's third layer a round
leaves as much as eight rounds of 10 steps without the preconditioner did."""
_TIED = 1e-6
"""How firmly a mixture is held where nothing tells, as a share of the mean curvature."""
_UNEVEN = 1e-4
"""Share of the mean curvature below which the preconditioner takes a direction for one without."""
_TOKENS, _PRODUCTS = 8192, 1 << 37
"""Tokens over which values are sought: so many, or more while their s sᵀ are fewer products than that. TinyStories-656K
with one KV head loses 0.732 nats when 8,192 of 65,536 are looked at, 0.722 with all of them; SmolLM2-135M 0.429 with
12,288 of 32,768, and 0.412 with all."""


@dataclass
class Bilinear:
    """Sums over tokens, fp64."""

    moment_HNM: torch.Tensor
    """Of s sᵀ."""
    cross_DM: torch.Tensor
    """Of y sᵀ."""
    shared: int
    """Query heads that read one value head."""
    energy: float = 0.0
    """Of |y|²."""

    @classmethod
    def empty(cls, heads: int, rows: int, outputs: int, shared: int, device: torch.device) -> "Bilinear":
        """Return the sums over no tokens, of H heads with N rows each and D outputs."""
        moment_HNM = torch.zeros(heads, rows, heads * rows, dtype=torch.float64, device=device)
        return cls(moment_HNM, moment_HNM.new_zeros(outputs, heads * rows), shared)

    def add(self, s_BM: torch.Tensor, y_BD: torch.Tensor) -> None:
        """Take in tokens."""
        # Products within a batch are in the precision that the model ran in; sums over batches, of which there are many
        # and whose differences `solve` lives on, are in fp64.
        self.moment_HNM.flatten(0, 1).add_(symmetric_product(s_BM.mT, s_BM.mT))
        self.cross_DM.add_(y_BD.mT.to(s_BM.dtype) @ s_BM)
        self.energy += float(y_BD.square().sum(dtype=torch.float64))

    def solve(
        self, mixing_GFN: torch.Tensor, output_DZ: torch.Tensor, aside: "Bilinear"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixtures and the output projection that reads them, found from these on.

        Args:
            mixing_GFN: Mixtures to begin with.
            output_DZ: What reads them; what is found is held to it as firmly as suits the other text.
            aside: The same sums over other text: the search ends when it gains nothing there.
        """
        read_DZ, ridge = self.seen(mixing_GFN).fit(output_DZ, aside.seen(mixing_GFN))
        found, left = (mixing_GFN, read_DZ), aside.seen(mixing_GFN).error(read_DZ)
        for _ in range(_ROUNDS):
            mixing_GFN = self._mixtures(read_DZ, mixing_GFN)
            read_DZ = self.seen(mixing_GFN).solve(output_DZ, ridge)
            error = aside.seen(mixing_GFN).error(read_DZ)
            if not error < left:
                break
            found, gain, left = (mixing_GFN, read_DZ), left - error, error
            if gain <= _ENOUGH * left:
                break
        return found

    def seen(self, mixing_GFN: torch.Tensor) -> Linear:
        """Return the sums of what mixtures give the output projection."""
        # z_h = P s_h, so z zᵀ and y zᵀ are the sums with P applied: no token is looked at again.
        mixing_HFN = self._of_heads(mixing_GFN)
        heads, width, rows = mixing_HFN.shape
        seen_ZHN = (mixing_HFN @ self.moment_HNM).reshape(heads * width, heads, rows)
        moment_ZZ = torch.einsum("zhn,hfn->zhf", seen_ZHN, mixing_HFN).flatten(1)
        cross_DZ = torch.einsum("dhn,hfn->dhf", self.cross_DM.unflatten(1, (heads, rows)), mixing_HFN).flatten(1)
        return Linear(moment_ZZ, cross_DZ, self.energy)

    def _mixtures(self, output_DZ: torch.Tensor, before_GFN: torch.Tensor) -> torch.Tensor:
        """Return the mixtures that suit an output projection, sought from others on."""
        # The derivative by P_g is zero where Σ_h Σ_h' O_hᵀO_h' P_g(h') E[s_h' s_hᵀ] = Σ_h O_hᵀ E[y s_hᵀ], h running
        # over the heads of the group: G·F·N equations that couple all groups, too many to write down as a matrix.
        # Conjugate gradients only ask what the left side makes of a given P (`curve`).
        heads, rows = self.moment_HNM.shape[:2]
        inner_HFZ = (output_DZ.mT @ output_DZ).unflatten(0, (heads, -1))
        cross_DHN, output_DHF = (one.unflatten(1, (heads, -1)) for one in (self.cross_DM, output_DZ))
        wanted_GFN = self._of_groups(torch.einsum("dhf,dhn->hfn", output_DHF, cross_DHN))
        # The curvature is a sum over heads of Kronecker products. Each head's own, taken as Σ O_hᵀO_h ⊗ Σ E[s_h s_hᵀ],
        # are most of it, and can be divided by: rows of very uneven sizes then need no more steps than even ones.
        own_HFF, own_HNN = own_grams(inner_HFZ.flatten(0, 1), heads), own_grams(self.moment_HNM.flatten(0, 1), heads)
        left_GFF, right_GNN = (_even(self._of_groups(own)) for own in (own_HFF, own_HNN))
        # Directions in which rows are copies of others have no curvature: the tie keeps the mixtures there as they are.
        sizes = (own.diagonal(dim1=1, dim2=2).mean() for own in (own_HFF, own_HNN))
        tied = _TIED * float(torch.stack([*sizes]).prod())

        def curve(mixing_GFN: torch.Tensor) -> torch.Tensor:
            seen_ZM = (self._of_heads(mixing_GFN) @ self.moment_HNM).flatten(0, 1)
            seen_HZN = seen_ZM.unflatten(1, (heads, rows)).transpose(0, 1)
            return self._of_groups(inner_HFZ @ seen_HZN) + tied * mixing_GFN

        # From the last round's mixtures on, each step lowers the (tied) error. Few steps a round are enough: what they
        # leave, the next round takes up with outputs that fit better.
        found, left = before_GFN, wanted_GFN + tied * before_GFN - curve(before_GFN)
        step, size, tiny = torch.zeros_like(left), left.new_ones(()), torch.finfo(left.dtype).tiny
        for _ in range(_STEPS):
            evened = left_GFF @ left @ right_GNN
            before, size = size, (left * evened).sum()
            step = evened + size / before.clamp(min=tiny) * step
            curved = curve(step)
            length = size / (step * curved).sum().clamp(min=tiny)
            found, left = found + length * step, left - length * curved
        return found

    def _of_heads(self, mixing_GFN: torch.Tensor) -> torch.Tensor:
        """Return each query head's, `[H, F, N]`."""
        return mixing_GFN.repeat_interleave(self.shared, dim=0)

    def _of_groups(self, each_HFN: torch.Tensor) -> torch.Tensor:
        """Return the sums over the query heads of each group, `[G, F, N]`."""
        total_GFN: torch.Tensor = each_HFN.unflatten(0, (-1, self.shared)).sum(dim=1)
        return total_GFN


def _even(moment_GNN: torch.Tensor) -> torch.Tensor:
    """Return the inverses of positive semidefinite matrices, none of their eigenvalues far below the mean."""
    floor_G = _UNEVEN * moment_GNN.diagonal(dim1=1, dim2=2).mean(dim=-1).clamp(min=torch.finfo(moment_GNN.dtype).tiny)
    eye_NN = torch.eye(moment_GNN.shape[-1], dtype=moment_GNN.dtype, device=moment_GNN.device)
    inverse: torch.Tensor = torch.linalg.inv(moment_GNN + floor_G[:, None, None] * eye_NN)
    return inverse


_LEAST, _MOST = 2, 4
"""Rows of a mixture, in multiples of the values it makes. stories260K with one KV head loses 18 % of what the mean
does with 4, 19 % with 2, and 25 % when its outputs alone are refitted."""
_ALL = 8192
"""Rows of all query heads at most, but for `_LEAST`: the sum of their products is 0.5 GB then."""


@torch.no_grad()
def refit_values(
    module: nn.Module,
    output: str,
    examples: Sequence[Example],
    aside: Sequence[Example],
    device: torch.device,
    merged: Merged,
) -> None:
    """Refit a module's values and output projection on calls of the module and what is wanted of the projection.

    Args:
        module: The converted attention module, its queries and keys as merged; changed in place.
        output: Path of its output projection, a linear module.
        examples: Calls, and for each the output `[B, T, D]` that the projection should have.
        aside: More of them, by which it is seen how far the others lead.
        device: Where to compute.
        merged: The merge; its values are free.
    """
    rows_GNX, old_GFX, old_HDF = _rows(merged), merged.heads.v_KFX.double(), merged.heads.o_HDF.double()
    old_DZ, dtype = old_HDF.transpose(0, 1).flatten(1), merged.heads.v_KFX.dtype
    start_GFN = torch.stack([_mixture(old, rows) for old, rows in zip(old_GFX, rows_GNX, strict=True)])
    tokens = max(_TOKENS, _PRODUCTS // (len(old_HDF) * rows_GNX.shape[1]) ** 2)
    few = -(-tokens // examples[0][1].shape[:-1].numel())
    sums, measure = (_run(module, output, of, device, merged, rows_GNX) for of in (examples[:few], aside[:few]))
    mixing_GFN, _ = sums.solve(start_GFN, old_DZ, measure)
    # (M P, O M⁻¹) is the same layer for any M. The search leaves P at any scale, so the new values are turned to where
    # the old ones were: channels keep their size for 16-bit weights and caches, and `distil` starts from a usual one.
    new_GFX = mixing_GFN @ rows_GNX.double()
    turn_GFF = torch.stack([towards(new, old[None]) for new, old in zip(new_GFX, old_GFX, strict=True)])
    heads = replace(merged.heads, v_KFX=(turn_GFF @ new_GFX).to(dtype))
    install(module, merged.with_heads(heads))
    known, told = (one.seen(turn_GFF @ mixing_GFN) for one in (sums, measure))
    new_DZ, _ = known.add(module, output, examples[few:], device).fit(old_DZ, told)
    new_HDF = new_DZ.unflatten(1, (len(old_HDF), -1)).transpose(0, 1)
    install(module, merged.with_heads(replace(heads, o_HDF=new_HDF.to(dtype))))


def rows_of_mixtures(query_heads: int, width: int, members: int) -> int:
    """Return N, for values of F = `width` channels and groups of so many KV heads."""
    return min(members * width, max(_LEAST * width, min(_MOST * width, _ALL // query_heads)))


def _rows(merged: Merged) -> torch.Tensor:
    """Return what to mix values from, `[G, N, X]`: the rows of a group's heads, or as many leading mixtures of them."""
    heads, width = gather(merged.layer, merged.source), merged.heads.v_KFX.shape[1]
    known, shared = (merged.statistics or NOTHING_KNOWN).like(heads.v_KFX), heads.queries_per_head
    count = rows_of_mixtures(merged.layer.query_heads, width, len(merged.groups[0]))
    # Of all R·F rows of a group, the mixtures that a merge would keep first; of the rest hardly anything is read.
    rows_GNX = torch.stack(
        [leading_rows(heads.members(group), known.members(group, shared), count) for group in merged.groups]
    )
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
    examples: Iterable[Example],
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
