"""The fit, held against loops over distances with rotations written out, and against a planted latent."""

import math
from dataclasses import replace

import pytest
import torch

from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.metric import Full
from mha2gqa.methods.aligned import distances
from mha2gqa.targets.latent import fit as fitting
from mha2gqa.targets.latent.costs import output_energy, score_costs, value_costs
from mha2gqa.targets.latent.fit import Fitted, fit
from mha2gqa.targets.latent.form import RotaryKey
from tests.families.gauge import disguised

HEADS, SHARED, WIDTH, INPUTS, OUTPUTS = 3, 2, 8, 20, 12
SCALING = 0.3
CASES = {
    "half": Rotary(8, "half", (1.0, 0.1, 0.01, 0.001)),
    "interleaved": Rotary(8, "interleaved", (1.0, 0.3, 0.09, 0.02)),
    "partial": Rotary(4, "half", (0.5, 0.01)),
    "not rotated": Rotary(0),
}
KEY = RotaryKey((1.0, 0.5, 0.05), ((0, 0), (0, 1), (1, 0)), {}, "")
LATENT = 6


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(rotary: Rotary) -> AttentionHeads:
    return AttentionHeads(
        q_HEX=random(HEADS * SHARED, WIDTH, INPUTS, seed=1),
        k_KEX=random(HEADS, WIDTH, INPUTS, seed=2),
        v_KFX=random(HEADS, WIDTH, INPUTS, seed=3),
        o_HDF=random(HEADS * SHARED, OUTPUTS, WIDTH, seed=4),
        rotary=rotary,
        keys="free",
        values="free",
    )


FACTOR = random(INPUTS, INPUTS, seed=0)
KNOWN = Statistics(Full(FACTOR @ FACTOR.T), Full(torch.eye(INPUTS, dtype=torch.float64)))


def rotation(speeds: tuple[float, ...], places: torch.Tensor, width: int, distance: float) -> torch.Tensor:
    """What a key `distance` tokens before its query is turned by, beside it."""
    matrix = torch.eye(width, dtype=torch.float64)
    for speed, (first, second) in zip(speeds, places.tolist(), strict=True):
        cosine, sine = math.cos(-distance * speed), math.sin(-distance * speed)
        matrix[first, first], matrix[first, second] = cosine, -sine
        matrix[second, first], matrix[second, second] = sine, cosine
    return matrix


def lost(heads: AttentionHeads, found: Fitted) -> tuple[float, float]:
    """What scores and values lose, by loops over heads and distances."""
    moment, form = KNOWN.inputs.gram(torch.eye(INPUTS, dtype=torch.float64)), found.heads
    costs = score_costs(heads, KNOWN, KNOWN.inputs.gram(heads.v_KFX.flatten(0, 1)), SCALING)
    rows = torch.cat([form.turning_RX, form.latent_CX])
    lift_HNE = torch.cat([form.turning_lift_HRE, form.latent_lift_HCE], dim=1)
    planes = torch.arange(KEY.width).view(2, -1).T
    scores = 0.0
    for distance, weight in zip(*(one.tolist() for one in distances._distances()), strict=True):
        turn = rotation(KEY.speeds, planes, len(rows), distance)
        own = rotation(heads.rotary.frequencies, heads.rotary.planes(), WIDTH, distance)
        for head in range(HEADS):
            error = own @ heads.k_KEX[head] - lift_HNE[head * SHARED].T @ turn @ rows
            scores += weight * float((costs[head] * (error @ moment @ error.T)).sum())
    error = (heads.v_KFX - form.value_HFC[::SHARED] @ form.latent_CX).flatten(0, 1)
    return scores, float((value_costs(heads, KNOWN) * (error @ moment @ error.T)).sum())


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_is_lost(case: str) -> None:
    heads = layer(CASES[case])
    found = fit(heads, KNOWN, KEY, LATENT, SCALING)
    scores, values = lost(heads, found)
    gram = KNOWN.inputs.gram(heads.v_KFX.flatten(0, 1))
    costs = score_costs(heads, KNOWN, gram, SCALING)
    keys = KNOWN.inputs.gram(heads.k_KEX.flatten(0, 1))
    assert found.scores_lost == pytest.approx(scores / distances.scores_energy(keys, costs, heads.rotary), rel=1e-6)
    assert found.values_lost == pytest.approx(values / output_energy(value_costs(heads, KNOWN), gram), rel=1e-6)


@pytest.mark.parametrize("case", [name for name, rotary in CASES.items() if rotary.width])
def test_every_round_loses_less(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, beta, losses = layer(CASES[case]), 2.0, []
    for rounds in (1, 2, 4, 8):
        monkeypatch.setattr(fitting, "_ROUNDS", rounds)
        scores, values = lost(heads, fit(heads, KNOWN, KEY, LATENT, SCALING, beta))
        losses.append(scores + beta * values)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]


def test_without_rotation_the_start_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, losses = layer(CASES["not rotated"]), []
    for rounds in (1, 8):
        monkeypatch.setattr(fitting, "_ROUNDS", rounds)
        losses.append(sum(lost(heads, fit(heads, KNOWN, KEY, LATENT, SCALING, 1.0))))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_values_count_more_with_more_weight() -> None:
    heads = layer(CASES["half"])
    few, many = (fit(heads, KNOWN, KEY, LATENT, SCALING, beta) for beta in (0.1, 30.0))
    assert many.values_lost < few.values_lost
    assert many.scores_lost > few.scores_lost


def planted(rotary: Rotary, latent: int) -> AttentionHeads:
    """Latent attention written as heads: one rotary key and one latent, read by every head in a way of its own."""
    heads, turned = layer(rotary), rotary.width
    shared_EX, shared_CX = random(WIDTH, INPUTS, seed=5), random(latent, INPUTS, seed=6)
    k_KEX = shared_EX.expand(HEADS, -1, -1).clone()
    k_KEX[:, turned:] = random(HEADS, WIDTH - turned, latent, seed=7) @ shared_CX
    v_KFX = random(HEADS, WIDTH, latent, seed=8) @ shared_CX
    return disguised(replace(heads, k_KEX=k_KEX, v_KFX=v_KFX), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("latent", [6, 8, 12])
@pytest.mark.parametrize("case", ["half", "interleaved", "partial"])
def test_a_planted_latent_is_found_again(case: str, latent: int) -> None:
    rotary = CASES[case]
    planes = len(rotary.frequencies)
    key = RotaryKey(rotary.frequencies, tuple((plane, 0) for plane in range(planes)), {}, "")
    found = fit(planted(rotary, 6), KNOWN, key, latent, SCALING)
    assert max(found.scores_lost, found.values_lost) < 1e-8
    too_few = fit(planted(rotary, 6), KNOWN, key, 4, SCALING)
    assert max(too_few.scores_lost, too_few.values_lost) > 1e-3
