"""What rotary planes are worth, held against a decomposition of one plane by hand."""

import cmath
from dataclasses import replace

import pytest
import torch

from mha2gqa.heads.attention import Statistics
from mha2gqa.methods.aligned import distances
from mha2gqa.targets.latent.costs import output_energy, score_costs, value_costs
from mha2gqa.targets.latent.planes import best_planes, plane_gains, shared_rows, standing
from tests.targets.latent.test_fit import CASES, HEADS, KNOWN, SCALING, layer


def test_a_slow_plane_is_as_good_as_one_that_stands_still() -> None:
    rotary = CASES["half"]
    found = standing(rotary)
    for place, speed in enumerate(rotary.frequencies):
        pairs = zip(*(one.tolist() for one in distances._distances()), strict=True)
        kappa = sum(weight * cmath.exp(-1j * speed * distance) for distance, weight in pairs)
        assert float(found[place]) == pytest.approx(abs(kappa))
    assert found[-1] > 0.7 > 0.5 > found[0]
    assert found.tolist() == sorted(found.tolist())


@pytest.mark.parametrize("case", ["half", "interleaved", "partial"])
def test_gains_are_what_shared_rows_catch(case: str) -> None:
    heads = layer(CASES[case])
    gram_of_values = KNOWN.inputs.gram(heads.v_KFX.flatten(0, 1))
    costs = score_costs(heads, KNOWN, gram_of_values, SCALING)
    gains = plane_gains(heads, KNOWN, SCALING)
    planes, kappa = heads.rotary.planes(), standing(heads.rotary)
    root = torch.linalg.cholesky(KNOWN.inputs.gram(torch.eye(heads.k_KEX.shape[2], dtype=torch.float64)))
    for place, (first, second) in enumerate(planes.tolist()):
        weight = (costs[:, first, first] + costs[:, second, second]).div(2).sqrt()
        rows = torch.complex(heads.k_KEX[:, first], heads.k_KEX[:, second]) * weight[:, None]
        energies = torch.linalg.svdvals(rows @ root.to(rows.dtype)).square()
        wanted = energies * (1 - kappa[place] ** 2) / output_energy(value_costs(heads, KNOWN), gram_of_values)
        torch.testing.assert_close(gains[place], wanted)


def test_one_shared_row_is_enough_for_heads_that_are_alike() -> None:
    heads = layer(CASES["half"])
    alike = replace(heads, k_KEX=heads.k_KEX[:1].repeat(HEADS, 1, 1))
    gains = plane_gains(alike, KNOWN, SCALING)
    assert (gains[:, 1:] < 1e-9 * gains[:, :1]).all()


def test_shared_rows_are_orthonormal_mixtures() -> None:
    heads = layer(CASES["half"])
    costs = score_costs(heads, KNOWN, KNOWN.inputs.gram(heads.v_KFX.flatten(0, 1)), SCALING)
    vectors = shared_rows(KNOWN.inputs.gram(heads.k_KEX.flatten(0, 1)), costs, heads.rotary).vector_PNK
    eye = torch.eye(HEADS, dtype=vectors.dtype).expand(len(vectors), -1, -1)
    torch.testing.assert_close(vectors @ vectors.mH, eye)


def test_costs_grow_with_what_heads_move_and_how_sharply_they_look() -> None:
    heads = layer(CASES["half"])
    gram = KNOWN.inputs.gram(heads.v_KFX.flatten(0, 1))
    costs = score_costs(heads, KNOWN, gram, SCALING)
    louder = replace(heads, o_HDF=heads.o_HDF * 3)
    sharper = Statistics(KNOWN.inputs, KNOWN.query_inputs)
    torch.testing.assert_close(score_costs(louder, KNOWN, gram, SCALING), 9 * costs)
    torch.testing.assert_close(score_costs(heads, sharper, gram, 2 * SCALING), 4 * costs)
    torch.testing.assert_close(value_costs(louder, KNOWN), 9 * value_costs(heads, KNOWN))


def test_the_best_planes_of_all_layers_are_taken() -> None:
    one = torch.tensor([[5.0, 1.0], [2.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [3.0, 2.0]])
    assert best_planes([one], 2) == ((0, 0), (1, 0))
    assert best_planes([one, other], 3) == ((0, 0), (1, 0), (1, 1))
    assert best_planes([one, other], 9) == ((0, 0), (0, 1), (1, 0), (1, 1))
