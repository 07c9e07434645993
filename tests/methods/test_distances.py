"""Keys shared over distances, held against loops over distances with rotations written out."""

import itertools
import math

import pytest
import torch

from mha2gqa.heads.attention import Rotary
from mha2gqa.heads.metric import Full
from mha2gqa.methods.aligned import distances
from mha2gqa.methods.aligned.basis import lost_energy
from mha2gqa.methods.aligned.distances import SharedKeys, fit_over_distances, scores_energy
from mha2gqa.methods.aligned.keys import share_plane_by_plane

HEADS, WIDTH, INPUTS = 3, 8, 12
CASES = {
    "half": Rotary(8, "half", (1.0, 0.1, 0.01, 0.001)),
    "interleaved": Rotary(8, "interleaved", (1.0, 0.3, 0.09, 0.02)),
    "partial": Rotary(4, "half", (0.5, 0.01)),
    "both ways": Rotary(8, "half", (1.0, 0.1, 0.01, 0.001), both_ways=True),
}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FACTOR = random(INPUTS, INPUTS, seed=0)
METRIC = Full(FACTOR @ FACTOR.T)
KEYS = random(HEADS, WIDTH, INPUTS, seed=1)
ENERGY = (lambda queries: queries @ queries.mT)(random(HEADS, WIDTH, 2 * WIDTH, seed=2))
ROWS = KEYS.flatten(0, 1)
GRAM = METRIC.gram(ROWS)
EYE = torch.eye(WIDTH, dtype=torch.float64)
START = SharedKeys(EYE.repeat(1, HEADS) / HEADS, EYE.repeat(HEADS, 1, 1))


def rotation(rotary: Rotary, distance: float) -> torch.Tensor:
    """What a key `distance` tokens before its query is turned by, beside it."""
    matrix = torch.eye(WIDTH, dtype=torch.float64)
    half = rotary.width // 2
    for plane, frequency in enumerate(rotary.frequencies):
        first, second = (plane, plane + half) if rotary.pairing == "half" else (2 * plane, 2 * plane + 1)
        cosine, sine = math.cos(-distance * frequency), math.sin(-distance * frequency)
        matrix[first, first], matrix[first, second] = cosine, -sine
        matrix[second, first], matrix[second, second] = sine, cosine
    return matrix


def turns(rotary: Rotary) -> list[tuple[float, torch.Tensor]]:
    """The weight of each distance, and its rotation."""
    found = zip(*(one.tolist() for one in distances._distances()), strict=True)
    signs = (1, -1) if rotary.both_ways else (1,)
    return [(weight / len(signs), rotation(rotary, sign * distance)) for distance, weight in found for sign in signs]


def error(keys: SharedKeys, rotary: Rotary) -> float:
    total = 0.0
    for weight, turn in turns(rotary):
        for head in range(HEADS):
            difference = turn @ KEYS[head] - keys.lift_REE[head].T @ turn @ keys.mixing @ ROWS
            total += weight * float((ENERGY[head] * (difference @ METRIC.moment_XX @ difference.T)).sum())
    return total


@pytest.mark.parametrize("rotary", CASES.values(), ids=CASES)
def test_every_round_brings_the_scores_nearer(rotary: Rotary, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [error(START, rotary)]
    for rounds in (1, 2, 5, 20):
        monkeypatch.setattr(distances, "_ROUNDS", rounds)
        errors.append(error(fit_over_distances(START, GRAM, ENERGY, rotary)[0], rotary))
    assert all(after < before * (1 - 1e-4) for before, after in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("rotary", CASES.values(), ids=CASES)
def test_queries_are_lifted_by_least_squares(rotary: Rotary) -> None:
    found, _ = fit_over_distances(START, GRAM, ENERGY, rotary)
    weighted = [(math.sqrt(weight) * turn, FACTOR) for weight, turn in turns(rotary)]
    seen = torch.cat([(turn @ found.mixing @ ROWS @ root).T for turn, root in weighted])
    for head in range(HEADS):
        wanted = torch.cat([(turn @ KEYS[head] @ root).T for turn, root in weighted])
        torch.testing.assert_close(
            torch.linalg.lstsq(seen, wanted).solution, found.lift_REE[head], rtol=1e-6, atol=1e-6
        )


def test_what_does_not_turn_is_one_free_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_ROUNDS", 300)
    still = Rotary(8, "half", (0.0,) * 4)
    found = error(fit_over_distances(START, GRAM, ENERGY, still)[0], still)
    least = lost_energy(torch.block_diag(*ENERGY), GRAM, WIDTH)
    assert least <= found * (1 + 1e-9) and found < 1.001 * least


@pytest.mark.parametrize("rotary", CASES.values(), ids=CASES)
def test_heads_that_are_one_head_stay_it(rotary: Rotary) -> None:
    """Planes that are multiplied by numbers of their own commute with the rotation: nothing has to be lost."""
    planes, rest = rotary.planes(), rotary.rest(WIDTH).flatten()
    lifts = torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        for plane, (first, second) in enumerate(planes.tolist()):
            real, imaginary = random(2, seed=10 * head + plane).tolist()
            lifts[head, first, first] = lifts[head, second, second] = real
            lifts[head, first, second], lifts[head, second, first] = imaginary, -imaginary
        lifts[head, rest[:, None], rest] = random(len(rest), len(rest), seed=head)
    shared = random(WIDTH, INPUTS, seed=3)
    keys = lifts.mT @ shared
    rows = keys.flatten(0, 1)
    found, lost = fit_over_distances(SharedKeys(START.mixing, lifts), METRIC.gram(rows), ENERGY, rotary)
    assert lost < 1e-9 * scores_energy(METRIC.gram(rows), ENERGY, rotary)
    for distance in (0, 3, 700):
        turn = rotation(rotary, distance)
        torch.testing.assert_close(found.lift_REE.mT @ turn @ found.mixing @ rows, turn @ keys, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rotary", CASES.values(), ids=CASES)
def test_it_says_what_is_lost(rotary: Rotary) -> None:
    found, lost = fit_over_distances(START, GRAM, ENERGY, rotary)
    assert lost == pytest.approx(error(found, rotary), rel=1e-6)


def test_planes_of_unknown_speeds_are_merged_each_by_itself() -> None:
    known = Rotary(4, "half", (1.0, 2.0**0.5))
    unknown = Rotary(4, "half")
    start = share_plane_by_plane(KEYS, GRAM, ENERGY, unknown)
    found, lost = fit_over_distances(start, GRAM, ENERGY, unknown)
    turned = [rotation(known, distance) for distance in range(5000)]  # all angles, the two unlike each other
    errors = [
        float((ENERGY[head] * (difference @ METRIC.moment_XX @ difference.T)).sum())
        for turn in turned
        for head in range(HEADS)
        for difference in [turn @ KEYS[head] - found.lift_REE[head].T @ turn @ found.mixing @ ROWS]
    ]
    assert lost == pytest.approx(sum(errors) / len(turned), rel=1e-2)
