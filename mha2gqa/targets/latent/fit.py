"""Fits a layer's latent attention: what is cached, and how each head reads it.

With S the cached rows (rotary rows, then the latent's), M the second moment of the inputs, W_h what errors of the rows
of head h's keys cost and V-costs those of values (`costs.py`), this lessens

    Σ_h Σ_d w_d tr W_h (R_d K_h - L_hᵀ R'_d S) M (R_d K_h - L_hᵀ R'_d S)ᵀ  +  β tr (value costs) e M eᵀ,  e = V - B S_c,

in turn by least squares: lifts L and B for given rows S, then S for given L and B. Distances d are summed over in
closed form, with the same weights w_d as for heads that share a key (`methods/aligned/distances.py`), R_d turning the
source's planes and R'_d those of the shared key. Every step is a linear system in which no more than the Gram matrix
of the heads' own rows is needed: S is sought as a mixture of them, because M falls out of the condition for S,

    Σ_h <R'ᵀ L_h W_h L_hᵀ R'> S = Σ_h <R'ᵀ L_h W_h R> K_h   (+ the same of values for the latent's rows).

So any `Metric` will do, and a GQA source costs in proportion to its few KV heads. Query heads that share a KV head
share its lifts: they depend on the keys alone, not on who reads them.

Legend: H query heads, K KV heads, E, F width of their keys and values, X inputs, N = R + C cached rows, R of the rotary
key, C of the latent, M = K·(E + F) rows that S is mixed of.
"""

from dataclasses import dataclass

import torch

from mha2gqa.heads.attention import NOTHING_KNOWN, AttentionHeads, Rotary, Statistics
from mha2gqa.methods.aligned.basis import firm
from mha2gqa.methods.aligned.distances import Turning, by_half, scores_energy, speeds_of
from mha2gqa.targets.latent.costs import output_energy, score_costs, value_costs
from mha2gqa.targets.latent.form import LatentHeads, RotaryKey
from mha2gqa.targets.latent.start import start_mixing

BETA = 4.0
"""How much errors of values count beside those of scores."""
_ENOUGH = 0.001
"""The fit ends when a round gains less than this share of what is still lost."""
_ROUNDS = 30
"""It never takes more."""
_ROUNDING = 1e-10
"""Share of the whole below which a gain is rounding."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted layer, and what it loses."""

    heads: LatentHeads
    scores_lost: float
    """Share of the scores' energy."""
    values_lost: float
    """Share of the energy of what is read of values."""
    lost: float
    """What the fit lessens, as a share of the energy of the layer's output."""
    rounds: int

    @property
    def losses(self) -> dict[str, float]:
        """What is lost of scores and of values, by name."""
        return {"scores_lost": self.scores_lost, "values_lost": self.values_lost}


def fit(
    heads: AttentionHeads,
    known: Statistics | None,
    key: RotaryKey,
    latent: int,
    scaling: float,
    beta: float = BETA,
) -> Fitted:
    """Fit the latent form of a layer.

    Args:
        heads: The layer, in fp32 or fp64; keys and values are free, and the speeds of its rotary planes known.
        known: Of its inputs; None treats them as uncorrelated and of equal size.
        key: The rotary key that all layers share.
        latent: C, an even number.
        scaling: What scores are multiplied with before the softmax.
        beta: How much errors of values count beside those of scores.

    Returns:
        The layer over C + R cached numbers a token; small systems are solved in fp64 whatever its dtype.
    """
    known = (known or NOTHING_KNOWN).like(heads.k_KEX)
    problem = _Problem.of(heads, known, key, latent, scaling, beta)
    found = problem.solve()
    rows_MX = torch.cat([heads.k_KEX.flatten(0, 1), heads.v_KFX.flatten(0, 1)])[problem.order_M]
    rows_NX = found.mixing_NM.to(rows_MX) @ rows_MX
    still, turning = problem.still_C, problem.turning_R
    lift_KNE = found.lift_KNE[..., by_half(heads.rotary, heads.k_KEX.shape[1]).argsort()].to(rows_MX)
    lift_HNE = lift_KNE.repeat_interleave(heads.queries_per_head, dim=0)
    value_KFC = found.value_VC.unflatten(0, heads.v_KFX.shape[:2]).to(rows_MX)
    return Fitted(
        heads=LatentHeads(
            q_HEX=heads.q_HEX,
            o_HDF=heads.o_HDF,
            turning_RX=rows_NX[turning],
            latent_CX=rows_NX[still],
            turning_lift_HRE=lift_HNE[:, turning],
            latent_lift_HCE=lift_HNE[:, still],
            value_HFC=value_KFC.repeat_interleave(heads.queries_per_head, dim=0),
        ),
        scores_lost=1 - found.scores / problem.scores if problem.scores else 0.0,
        values_lost=1 - found.values / problem.values if problem.values else 0.0,
        lost=beta * (problem.total - found.kept) / problem.values if problem.values else 0.0,
        rounds=found.rounds,
    )


@dataclass(frozen=True)
class _Found:
    """Cached rows as mixtures, what reads them, and the energies that they keep."""

    mixing_NM: torch.Tensor
    lift_KNE: torch.Tensor
    value_VC: torch.Tensor
    """V = K·F: values of all KV heads."""
    scores: float
    values: float
    rounds: int

    @property
    def kept(self) -> float:
        """Energy of scores and values together."""
        return self.scores + self.values


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """The sums that a fit needs; fp64. Rows of keys and cached rows are sorted by half, as `Turning` reads them."""

    gram_MM: torch.Tensor
    costs_KEE: torch.Tensor
    value_costs: torch.Tensor
    """β included."""
    start_NM: torch.Tensor
    across: Turning
    """Between cached rows and a head's."""
    cached: Turning
    """Between cached rows and themselves."""
    order_M: torch.Tensor
    """Place of each row among the layer's."""
    turning_R: torch.Tensor
    """Places of the rotary rows among the cached ones; the first rows of all planes, then the second."""
    still_C: torch.Tensor
    """Places of the latent's."""
    scores: float
    """Energy of the scores, in the unit of costs."""
    values: float
    """Energy of what is read of values, in the same unit."""

    @property
    def total(self) -> float:
        """Both."""
        return self.scores + self.values

    @classmethod
    def of(
        cls, heads: AttentionHeads, known: Statistics, key: RotaryKey, latent: int, scaling: float, beta: float
    ) -> "_Problem":
        count, width = heads.k_KEX.shape[:2]
        keys, device = count * width, heads.k_KEX.device
        gram_MM = known.of_values.gram(torch.cat([heads.k_KEX.flatten(0, 1), heads.v_KFX.flatten(0, 1)])).double()
        costs_KEE = score_costs(heads, known, gram_MM[keys:, keys:].to(heads.k_KEX), scaling).double()
        values = beta * value_costs(heads, known).double()
        turning_RM, latent_CM = start_mixing(gram_MM, costs_KEE, values, heads.rotary, key, latent)
        half, planes = (key.width + latent) // 2, key.width // 2
        place_N = torch.arange(2 * half, device=device).view(2, half)
        turning_R, still_C = place_N[:, :planes].flatten(), place_N[:, planes:].flatten()
        order_E = by_half(heads.rotary, width).to(device)
        order_M = torch.arange(len(gram_MM), device=device)
        order_M[:keys] = (order_M[:keys].view(count, width)[:, order_E]).flatten()
        start_NM = gram_MM.new_zeros(2 * half, len(gram_MM))
        start_NM[turning_R], start_NM[still_C] = turning_RM[:, order_M], latent_CM[:, order_M]
        speeds = (*key.speeds, *[0.0] * (half - planes))
        return cls(
            gram_MM=gram_MM[order_M[:, None], order_M],
            costs_KEE=costs_KEE[:, order_E[:, None], order_E],
            value_costs=values,
            start_NM=start_NM,
            across=_between(speeds, speeds_of(heads.rotary, width), heads.rotary, device),
            cached=_between(speeds, speeds, heads.rotary, device),
            order_M=order_M,
            turning_R=turning_R,
            still_C=still_C,
            scores=scores_energy(gram_MM[:keys, :keys], costs_KEE, heads.rotary),
            values=output_energy(values, gram_MM[keys:, keys:]),
        )

    def solve(self) -> "_Found":
        """Find cached rows, and what reads them."""
        mixing_NM, before = self.start_NM, 0.0
        for rounds in range(1, _ROUNDS + 1):
            found = self._reads(mixing_NM, rounds)
            if found.kept - before <= _ENOUGH * (self.total - found.kept) + _ROUNDING * self.total:
                break
            mixing_NM, before = self._rows(found), found.kept
        return found

    def _reads(self, mixing_NM: torch.Tensor, rounds: int) -> "_Found":
        """Return what suits cached rows, which are scaled to a mean square of 1.

        The two rows of a plane are scaled as one: with numbers of their own the plane would no longer be what it was.
        """
        seen_NM = mixing_NM @ self.gram_MM
        size_N = (seen_NM * mixing_NM).sum(dim=1).clamp(min=0).view(2, -1).mean(dim=0).sqrt().repeat(2)
        size_N1 = torch.where(size_N > 0, size_N, torch.ones_like(size_N))[:, None]
        mixing_NM, seen_NM = mixing_NM / size_N1, seen_NM / size_N1
        lift_KNE, scores = self._lifts(mixing_NM, seen_NM)
        value_VC, values = self._values(mixing_NM, seen_NM)
        return _Found(mixing_NM, lift_KNE, value_VC, scores, values, rounds)

    def _lifts(self, mixing_NM: torch.Tensor, seen_NM: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the lifts of queries that suit cached rows, and the scores' energy that they keep."""
        heads, width = self.costs_KEE.shape[:2]
        seen_KNE = seen_NM[:, : heads * width].unflatten(1, (heads, width)).transpose(0, 1)
        wanted_KNE = self.across.keys(seen_KNE)
        normal_NN = self.cached.keys(seen_NM @ mixing_NM.mT)
        found = _solve(normal_NN, wanted_KNE.transpose(0, 1).flatten(1))
        lift_KNE = found.unflatten(1, (heads, width)).transpose(0, 1)
        return lift_KNE, float((lift_KNE @ self.costs_KEE * wanted_KNE).sum())

    def _values(self, mixing_NM: torch.Tensor, seen_NM: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return what makes values of the latent, and the energy of values that it keeps."""
        seen_CM = seen_NM[self.still_C]
        wanted_CV = seen_CM[:, -len(self.value_costs) :]
        value_VC = _solve(seen_CM @ mixing_NM[self.still_C].mT, wanted_CV).mT
        return value_VC, float((self.value_costs @ value_VC * wanted_CV.mT).sum())

    def _rows(self, found: "_Found") -> torch.Tensor:
        """Return the cached rows that suit lifts and values, as near to the old ones as weak directions let them be."""
        reads_KNE, value_VC = found.lift_KNE @ self.costs_KEE, found.value_VC
        normal_NN = self.cached.queries((reads_KNE @ found.lift_KNE.mT).sum(dim=0))
        wanted_NM = torch.zeros_like(found.mixing_NM)
        keys = reads_KNE.shape[0] * reads_KNE.shape[2]
        wanted_NM[:, :keys] = self.across.queries(reads_KNE).transpose(0, 1).flatten(1)
        read_CV, still = value_VC.mT @ self.value_costs, self.still_C
        normal_NN[still[:, None], still] += read_CV @ value_VC
        wanted_NM[still, keys:] += read_CV
        return found.mixing_NM + _solve(normal_NN, wanted_NM - normal_NN @ found.mixing_NM)


def _between(left: tuple[float, ...], right: tuple[float, ...], rotary: Rotary, device: torch.device) -> Turning:
    return Turning.between(left, right, both_ways=rotary.both_ways, device=device)


def _solve(normal_NN: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.solve(firm(normal_NN, torch.float64), wanted)
    return found
