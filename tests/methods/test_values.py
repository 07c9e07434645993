"""Shared values, held against loops over query heads."""

import pytest
import torch

from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.metric import Full
from mha2gqa.methods.aligned import values

HEADS, QUERIES, WIDTH, INPUTS, OUTPUTS = 3, 2, 4, 10, 9


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FACTOR = random(INPUTS, INPUTS, seed=0)
LAYER = AttentionHeads(
    q_HEX=random(HEADS * QUERIES, WIDTH, INPUTS, seed=1),
    k_KEX=random(HEADS, WIDTH, INPUTS, seed=2),
    v_KFX=random(HEADS, WIDTH, INPUTS, seed=3),
    o_HDF=random(HEADS * QUERIES, OUTPUTS, WIDTH, seed=4),
    rotary=Rotary(WIDTH),
    keys="fixed",
    values="free",
)


def products(one: AttentionHeads) -> list[torch.Tensor]:
    """What each query head adds to the output for each input, in the metric of the inputs."""
    queries = len(one.o_HDF) // len(one.v_KFX)
    return [one.o_HDF[head] @ one.v_KFX[head // queries] @ FACTOR for head in range(len(one.o_HDF))]


def error(one: AttentionHeads, together: float) -> float:
    """The mean squared error of the output where heads read inputs that are correlated by `together`."""
    differences = [found - wanted for found, wanted in zip(products(one), products(LAYER), strict=True)]
    alone = sum(float(one.square().sum()) for one in differences)
    summed = torch.stack(differences).sum(dim=0)
    return (1 - together) * alone + together * float(summed.square().sum())


@pytest.mark.parametrize("together", [0.0, 0.3, 0.8])
def test_no_other_shared_values_are_nearer(together: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_TOGETHER", together)
    metric = Full(FACTOR @ FACTOR.T)
    found = values.merge_values(LAYER, Statistics(metric, metric))
    # Measured, all pairs alike, it is the same as guessed.
    together_HH = torch.full((len(LAYER.q_HEX),) * 2, together, dtype=torch.float64).fill_diagonal_(1)
    measured = values.merge_values(LAYER, Statistics(metric, metric, together_HH=together_HH))
    assert error(measured, together) == pytest.approx(error(found, together))
    v_FX, o_HDF = found.v_KFX.clone().requires_grad_(), found.o_HDF.clone().requires_grad_()
    rows = [o_HDF[head] @ v_FX[0] @ FACTOR for head in range(len(o_HDF))]
    differences = torch.stack([one - wanted for one, wanted in zip(rows, products(LAYER), strict=True)])
    loss = (1 - together) * differences.square().sum() + together * differences.sum(dim=0).square().sum()
    assert loss.item() == pytest.approx(error(found, together))
    loss.backward()
    scale = float(LAYER.o_HDF.norm() * LAYER.v_KFX.norm())
    assert max(float(one.grad.norm()) for one in (v_FX, o_HDF)) < 1e-9 * scale * loss.item() ** 0.5 * 100
    for seed in range(20):  # a saddle has lower ground beside it
        near = v_FX.detach() + 0.1 * random(*v_FX.shape, seed=100 + seed)
        onto = torch.linalg.lstsq((near[0] @ FACTOR).T, torch.cat(products(LAYER)).T).solution.T
        other = AttentionHeads(**vars(found) | {"v_KFX": near, "o_HDF": onto.unflatten(0, (-1, OUTPUTS))})
        assert error(other, together) > loss.item()


def test_weights_are_a_sum_over_pairs_of_query_heads() -> None:
    factor = random(HEADS * QUERIES, 20, seed=5)
    together_HH = torch.corrcoef(factor)
    o_RSDF = LAYER.o_HDF.unflatten(0, (HEADS, QUERIES))
    found = values.value_weights(o_RSDF, together_HH).view(HEADS, WIDTH, HEADS, WIDTH)
    wanted = torch.zeros_like(found)
    for one in range(HEADS * QUERIES):
        for other in range(HEADS * QUERIES):
            product = LAYER.o_HDF[one].T @ LAYER.o_HDF[other]
            wanted[one // QUERIES, :, other // QUERIES] += together_HH[one, other] * product
    torch.testing.assert_close(found, wanted)
