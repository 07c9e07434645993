"""The metrics are what they say: held against R M Rᵀ with M written out."""

import pytest
import torch

from mha2gqa.heads import metric as metrics
from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics, join
from mha2gqa.heads.metric import Even, Full, LowRank, Metric, symmetric_product
from mha2gqa.methods.aligned import aligned

WIDTH, DIRECTIONS = 24, 5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIAGONAL, FACTOR = random(WIDTH).abs(), random(WIDTH, DIRECTIONS, seed=1)
WHOLE = torch.diag(DIAGONAL) + FACTOR @ FACTOR.T
METRICS: dict[str, tuple[Metric, torch.Tensor]] = {
    "even": (Even(), torch.eye(WIDTH, dtype=torch.float64)),
    "full": (Full(WHOLE), WHOLE),
    "low rank": (LowRank(DIAGONAL, FACTOR), WHOLE),
}


@pytest.mark.parametrize(("metric", "moment"), METRICS.values(), ids=METRICS)
def test_grams_and_energies(metric: Metric, moment: torch.Tensor) -> None:
    rows = random(3, 7, WIDTH, seed=2)
    wanted = torch.einsum("bnx,xy,bmy->bnm", rows, moment, rows)
    torch.testing.assert_close(metric.gram(rows), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(metric.energies(rows), wanted.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-10)
    assert metric.like(rows.float()).gram(rows.float()).dtype == torch.float32


@pytest.mark.parametrize("rotary", [Rotary(8), Rotary(4, "interleaved"), Rotary(0)], ids=str)
def test_a_merge_is_the_same_in_the_same_metric(rotary: Rotary) -> None:
    heads = AttentionHeads(
        q_HEX=random(8, 8, WIDTH, seed=3),
        k_KEX=random(4, 8, WIDTH, seed=4),
        v_KFX=random(4, 5, WIDTH, seed=5),
        o_HDF=random(8, WIDTH, 5, seed=6),
        rotary=rotary,
        keys="free",
        values="free",
    )
    groups = ((2, 0), (1, 3))
    merged = {name: aligned(heads, groups, Statistics(metric, metric)) for name, (metric, _) in METRICS.items()}
    full, low_rank, even = merged["full"], merged["low rank"], merged["even"]
    for name in ("q_HEX", "k_KEX", "v_KFX", "o_HDF"):
        torch.testing.assert_close(getattr(full, name), getattr(low_rank, name), rtol=1e-6, atol=1e-8)
        assert not torch.allclose(getattr(full, name), getattr(even, name), rtol=1e-3, atol=1e-3)


def test_members_join_to_the_layer() -> None:
    heads = AttentionHeads(
        q_HEX=random(8, 8, WIDTH, seed=3),
        k_KEX=random(4, 8, WIDTH, seed=4),
        v_KFX=random(4, 5, WIDTH, seed=5),
        o_HDF=random(8, WIDTH, 5, seed=6),
        rotary=Rotary(8),
        keys="scaled",
        values="free",
        q_gain_HE=random(8, 8, seed=7),
        k_gain_KE=random(4, 8, seed=8),
    )
    joined = join(iter([heads.members((0, 1)), heads.members((2, 3))]), 2)
    for name, tensor in vars(heads).items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(getattr(joined, name), tensor)
    swapped = heads.members((3, 1))
    assert torch.equal(swapped.o_HDF, heads.o_HDF[[6, 7, 2, 3]])
    assert swapped.q_gain_HE is not None
    assert torch.equal(swapped.q_gain_HE, random(8, 8, seed=7)[[6, 7, 2, 3]])


@pytest.mark.parametrize("size", [1, 3, 8, 9, 31])
def test_half_a_product_is_the_whole_one(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_LARGE", 2)
    rows, factor = random(size, 5), random(5, 5, seed=1)
    moment = factor @ factor.T
    torch.testing.assert_close(symmetric_product(rows @ moment, rows), rows @ moment @ rows.T)
    many = rows[None].expand(3, -1, -1)
    torch.testing.assert_close(symmetric_product(many, many), many @ many.mT)
