"""One shared key head whose scores come nearest to all heads' at the distances at which tokens attend.

Rotary planes turn at speeds of their own. Over all distances that keeps them apart (`keys.py` merges each
by itself), but over those that matter slow planes hardly turn, and planes of like speed turn together: there, queries
may read what another plane holds. With R_d the rotation at distance d, S the shared head, and K_h, Q_h a head's keys
and the second moment of its queries, this seeks S and lifts L_h that lessen

    Σ_h Σ_d w_d E |Q_h^½ (R_d K_h x - L_hᵀ R_d S x)|²,

each in turn by least squares, from the merge plane by plane on; no step raises it. Sums over d act on planes as
products of numbers, so no distance is looped over. The weights w_d are a guess, see `_FALL`; no text is read.

Legend: R heads of a group, E rows of a head, X inputs, P pairs of rows that turn together, N distances.
"""

import functools
from dataclasses import dataclass

import torch

from mha2gqa.heads.attention import Rotary
from mha2gqa.methods.aligned.basis import firm

_FALL = 1.5
"""w_d = (1 + d)^-_FALL: most attention is near, and none of it is without any far. 1.75 and 2 are as good."""
_FAR = 16384
"""Tokens of the largest distance."""
_ENOUGH = 0.001
"""The fit ends when a round gains less than this share of what is still lost: after four to twenty on small models."""
_ROUNDS = 50
"""It never takes more."""


@dataclass(frozen=True)
class SharedKeys:
    """A shared head as a mixture of the heads' rows, and what takes each head's queries to it.

    q·k ≈ (lift q)·(mixing rows): `mixing` is `[E, R·E]`.
    """

    mixing: torch.Tensor
    lift_REE: torch.Tensor


def fit_over_distances(
    start: SharedKeys, gram: torch.Tensor, energy_REE: torch.Tensor, rotary: Rotary
) -> tuple[SharedKeys, float]:
    """Find the shared keys of a group.

    Args:
        start: Where to begin; its mixture counts only where a direction is too weak to tell.
        gram: Gram matrix of all heads' rows in the metric of the inputs, `[R·E, R·E]`.
        energy_REE: Second moment of each head's queries.
        rotary: With frequencies; rows that are not rotated have a frequency of 0.

    Returns:
        The shared keys in the dtype of the start, and the scores' energy that they lose.
    """
    heads, width, dtype = *energy_REE.shape[:2], gram.dtype
    total, kept = scores_energy(gram, energy_REE, rotary), 0.0
    # All in fp64: both normal equations have squared condition, and the loss is a small difference of two energies.
    turn, order_E = Turning.of(rotary, width, gram.device), by_half(rotary, width)
    gram_RERE = gram.double().reshape(heads, width, heads, width)[:, order_E][..., order_E]
    gram, energy_REE = gram_RERE.reshape(gram.shape), _sorted(energy_REE.double(), order_E)
    mixing = _beside(_sorted(_apart(start.mixing.double(), heads), order_E))
    lift_REE = _sorted(start.lift_REE.double(), order_E)
    reads_REE = lift_REE @ energy_REE  # L_h Q_h: how queries read the shared head, in all of its rows
    for _ in range(_ROUNDS):
        # With P the mixing, G the Gram matrix and E_h what picks head h's rows, the derivative by P is zero where
        # Σ_h mean(R_dᵀ L_h Q_h L_hᵀ R_d) P = Σ_h mean(R_dᵀ L_h Q_h R_d) E_h: G is on the right of both and drops out.
        normal = turn.queries((reads_REE @ lift_REE.mT).sum(dim=0))
        mixing = _nearer(mixing, normal, _beside(turn.queries(reads_REE)), dtype)
        # By L_h it is zero where mean(R_d P G Pᵀ R_dᵀ) L_h = mean(R_d P G E_hᵀ R_dᵀ): Q_h drops out, and the matrix on
        # the left is the same for all heads.
        seen = mixing @ gram
        wanted = _beside(turn.keys(_apart(seen, heads)))
        lift_REE = _apart(_nearer(_beside(lift_REE), turn.keys(seen @ mixing.mT), wanted, dtype), heads)
        # At the best L the error is orthogonal to what was found: what is kept is Σ_h tr(Q_h L_hᵀ wanted_h).
        reads_REE, before = lift_REE @ energy_REE, kept
        kept = float((reads_REE * _apart(wanted, heads)).sum())
        # The second term is what rounding of G leaves of the total: where nothing is lost, it ends the fit.
        if kept - before <= _ENOUGH * (total - kept) + torch.finfo(dtype).eps * total:
            break
    # The pairs' channels keep the order of the source; their lengths are left to `keys.py`.
    back_E = order_E.argsort()
    mixing = _beside(_sorted(_apart(mixing, heads), back_E))
    return SharedKeys(mixing.to(dtype), _sorted(lift_REE, back_E).to(dtype)), max(0.0, total - kept)


def scores_energy(gram: torch.Tensor, energy_REE: torch.Tensor, rotary: Rotary) -> float:
    """Return the energy of all heads' scores, of which `fit_over_distances` says what is lost; arguments as there."""
    heads, width = energy_REE.shape[:2]
    order_E = by_half(rotary, width)
    # Σ_h Σ_d w_d tr(Q_h R_d G_h R_dᵀ): of the whole Gram matrix only the heads' own blocks.
    own_REE = _sorted(own_grams(gram.double(), heads), order_E)
    turned_REE = Turning.of(rotary, width, gram.device).keys(own_REE)
    return float((_sorted(energy_REE.double(), order_E) * turned_REE).sum())


def own_grams(gram: torch.Tensor, heads: int) -> torch.Tensor:
    """Return each head's block of the Gram matrix of all heads' rows, `[R, E, E]`."""
    blocks: torch.Tensor = gram.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1)


def _beside(matrices_REE: torch.Tensor) -> torch.Tensor:
    """Return the matrices of all heads as one, `[E, R·E]`."""
    return matrices_REE.transpose(0, 1).flatten(1)


def _apart(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo `_beside`."""
    parts_REE: torch.Tensor = matrix.unflatten(1, (heads, -1)).transpose(0, 1)
    return parts_REE


def _nearer(found: torch.Tensor, normal_EE: torch.Tensor, wanted: torch.Tensor, known_to: torch.dtype) -> torch.Tensor:
    """Return the solution of `normal @ x = wanted`, as near to what is found already as weak directions let it be."""
    # What `firm` adds pulls the solution towards 0; here that of the step, so that weak directions stay as they were.
    step: torch.Tensor = torch.linalg.solve(firm(normal_EE, known_to), wanted - normal_EE @ found)
    return found + step


@dataclass(frozen=True)
class Turning:
    """Weighted means over distances of R_d M R'_dᵀ (`keys`) and of R_dᵀ M R'_d (`queries`), M `[..., E, E']`.

    R and R' may turn different planes: rows of one head on the left, of another on the right. Rows are sorted by
    `by_half`: to read halves of a matrix is several times as fast as to look pairs up.
    """

    apart_PP: torch.Tensor
    """Σ w_d exp(-i (θ - θ') d): what becomes of products of one pair of rows, read as z, with another."""
    together_PP: torch.Tensor
    """Σ w_d exp(-i (θ + θ') d): of products with the other's conjugate."""

    @classmethod
    def of(cls, rotary: Rotary, width: int, device: torch.device) -> "Turning":
        """Return the means between the rows of one head and themselves."""
        turning, still = rotary.width // 2, (width - rotary.width) // 2
        if not turning or rotary.frequencies:
            apart, together = _kernels(*[speeds_of(rotary, width)] * 2, rotary.both_ways)
        else:
            apart, together = _far_kernels(turning, still)
        return cls(apart.to(device), together.to(device))

    @classmethod
    def between(
        cls, left: tuple[float, ...], right: tuple[float, ...], *, both_ways: bool, device: torch.device
    ) -> "Turning":
        """Return the means between planes of two sets of speeds, in radians a token; most of either may be alike."""
        distinct, places = zip(*(_distinct(speeds) for speeds in (left, right)), strict=True)
        apart, together = (kernel[places[0][:, None], places[1]] for kernel in _kernels(*distinct, both_ways))
        return cls(apart.to(device), together.to(device))

    def keys(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return the mean of R_d M R'_dᵀ."""
        return self._mean(matrix, self.apart_PP, self.together_PP)

    def queries(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return the mean of R_dᵀ M R'_d."""
        return self._mean(matrix, self.apart_PP.conj(), self.together_PP.conj())

    def _mean(self, matrix: torch.Tensor, apart_PP: torch.Tensor, together_PP: torch.Tensor) -> torch.Tensor:
        """Read a matrix as z ↦ a z + b z̄ from pair to pair, and multiply a and b."""
        # Any real 2 by 2 matrix is such a map, and R_d is z ↦ e^(-iθd) z. So R_d M R_dᵀ makes of a, from a pair of
        # speed θ' to one of θ, a·e^(-i(θ-θ')d), and of b, which conjugates what it is given, b·e^(-i(θ+θ')d).
        rows, columns = apart_PP.shape
        top_left, top_right = matrix[..., :rows, :columns], matrix[..., :rows, columns:]
        low_left, low_right = matrix[..., rows:, :columns], matrix[..., rows:, columns:]
        plain = torch.complex(top_left + low_right, low_left - top_right) / 2 * apart_PP
        mirrored = torch.complex(top_left - low_right, low_left + top_right) / 2 * together_PP
        mean = torch.empty_like(matrix)
        mean[..., :rows, :columns] = plain.real + mirrored.real
        mean[..., :rows, columns:] = mirrored.imag - plain.imag
        mean[..., rows:, :columns] = mirrored.imag + plain.imag
        mean[..., rows:, columns:] = plain.real - mirrored.real
        return mean


def pairs(rotary: Rotary, width: int) -> torch.Tensor:
    """Return the rows of each rotary plane, then those that are not rotated by twos, int64 `[P, 2]`."""
    return torch.cat([rotary.planes(), rotary.rest(width).view(2, -1).T])


def speeds_of(rotary: Rotary, width: int) -> tuple[float, ...]:
    """Return the speed of each of `pairs`, in radians a token; 0 for those that are not rotated."""
    # Rows that are not rotated are read as pairs of speed 0, which meet each other at every distance.
    return (*rotary.frequencies, *[0.0] * ((width - rotary.width) // 2))


def by_half(rotary: Rotary, width: int) -> torch.Tensor:
    """Return the first rows of all `pairs`, then the second ones, int64 `[E]`."""
    return pairs(rotary, width).T.flatten()


def _sorted(matrices_REE: torch.Tensor, order_E: torch.Tensor) -> torch.Tensor:
    """Return matrices with their rows and columns in an order."""
    return matrices_REE[:, order_E][..., order_E]


@functools.lru_cache(maxsize=8)  # all layers and groups of a model mostly share them, and there are a hundred distances
def _kernels(left: tuple[float, ...], right: tuple[float, ...], both_ways: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `apart_PP` and `together_PP` of `Turning`; real where tokens attend in both directions."""
    left_P, right_P = (torch.tensor(speeds, dtype=torch.float64) for speeds in (left, right))
    distance_N, weight_N = _distances()

    def mean(angles_PP: torch.Tensor) -> torch.Tensor:
        # Tokens on both sides: the kernels of d and of -d are conjugates, and their mean is real.
        value: torch.Tensor = torch.exp(-1j * angles_PP[..., None] * distance_N) @ weight_N.to(torch.complex128)
        return torch.complex(value.real, torch.zeros_like(value.real)) if both_ways else value

    return mean(left_P[:, None] - right_P), mean(left_P[:, None] + right_P)


def _distinct(speeds: tuple[float, ...]) -> tuple[tuple[float, ...], torch.Tensor]:
    """Return each speed once, and the place of every one among them."""
    places = {speed: place for place, speed in enumerate(dict.fromkeys(speeds))}
    return tuple(places), torch.tensor([places[speed] for speed in speeds])


def _far_kernels(turning: int, still: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same where speeds are not known: over all distances, nothing is common to planes that turn."""
    one = torch.ones(still, still, dtype=torch.complex128)
    return torch.block_diag(torch.eye(turning, dtype=one.dtype), one), torch.block_diag(0 * torch.eye(turning), one)


def _distances() -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances and their weights, fp64 `[N]`: each for itself when near, one for a stretch when far."""
    # Beyond 32, 96 stretches of equal width on a logarithmic scale stand for 16,352 distances, each by its middle: slow
    # planes hardly turn within one, and fast ones are at unrelated angles from one to the next, which average out.
    edges = torch.logspace(5, torch.log2(torch.tensor(float(_FAR))).item(), 97, base=2.0, dtype=torch.float64).round()
    starts = torch.cat([torch.arange(32, dtype=torch.float64), edges])
    distance_N, length_N = (starts[1:] + starts[:-1] - 1) / 2, starts[1:] - starts[:-1]
    weight_N = length_N * (1 + distance_N) ** -_FALL
    return distance_N, weight_N / weight_N.sum()
