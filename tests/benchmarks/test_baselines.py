"""The published methods that `benchmarks/baselines.py` measures against do what their authors say."""

import math

import baselines
import pytest
import torch

from mha2gqa.errors import CalibrationError
from mha2gqa.heads.attention import AttentionHeads, Rotary, Statistics
from mha2gqa.heads.metric import Full

GROUPS = ((2, 0), (1, 3))
TOKENS, WIDTH = 6, 24


def random_heads(rotary: Rotary, shared: int = 2) -> AttentionHeads:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return AttentionHeads(
        q_HEX=random(4 * shared, 8, WIDTH),
        k_KEX=random(4, 8, WIDTH),
        v_KFX=random(4, 5, WIDTH),
        o_HDF=random(4 * shared, 7, 5),
        rotary=rotary,
        keys="free",
        values="free",
    )


def moments() -> Statistics:
    rows = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Statistics(Full(rows.mT @ rows), Full(rows.mT @ rows))


def attend(heads: AttentionHeads) -> torch.Tensor:
    """Attention by a plain loop, rotary embedding by a rotation matrix per plane."""
    inputs = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total = torch.zeros(TOKENS, heads.o_HDF.shape[1], dtype=torch.float64)
    for head, query in enumerate(heads.q_HEX):
        kv = head // heads.queries_per_head
        q, k = (
            torch.stack([rotated(rows @ x, place, heads.rotary) for place, x in enumerate(inputs)])
            for rows in (query, heads.k_KEX[kv])
        )
        weights = (q @ k.T / math.sqrt(8)).softmax(dim=-1)
        total += weights @ (inputs @ heads.v_KFX[kv].T) @ heads.o_HDF[head].T
    return total


def rotated(row: torch.Tensor, place: int, rotary: Rotary) -> torch.Tensor:
    row = row.clone()
    for plane, (first, second) in enumerate(rotary.planes().tolist()):
        angle = place * 0.5**plane
        a, b = row[first].item(), row[second].item()
        row[first] = a * math.cos(angle) - b * math.sin(angle)
        row[second] = a * math.sin(angle) + b * math.cos(angle)
    return row


@pytest.mark.parametrize("statistics", [None, moments()], ids=["weights", "outputs"])
@pytest.mark.parametrize("rotary", [Rotary(8), Rotary(4, "interleaved"), Rotary(0)], ids=str)
def test_alignment_changes_no_output_and_brings_heads_nearer(rotary: Rotary, statistics: Statistics | None) -> None:
    heads = random_heads(rotary)
    aligned = baselines.align(heads, GROUPS, statistics)
    torch.testing.assert_close(attend(aligned), attend(heads), rtol=0, atol=1e-9)
    metric = torch.eye(WIDTH, dtype=torch.float64)
    if statistics is not None:
        assert isinstance(statistics.inputs, Full)
        metric = statistics.inputs.moment_XX
    for before, after in ((heads.k_KEX, aligned.k_KEX), (heads.v_KFX, aligned.v_KFX)):
        for one, other in GROUPS:
            apart = [(rows[one] - rows[other]) for rows in (before, after)]
            distances = [(rows @ metric * rows).sum().item() for rows in apart]
            assert distances[1] < 0.95 * distances[0]


def test_turned_copies_of_a_head_are_merged_without_loss() -> None:
    heads = random_heads(Rotary(8), shared=1)
    for one, other in GROUPS:
        turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(one), dtype=torch.float64)).Q
        heads.v_KFX[other] = turn @ heads.v_KFX[one]
        first, second = heads.k_KEX[one].chunk(2)
        heads.k_KEX[other] = torch.cat([0.6 * first - 0.8 * second, 0.8 * first + 0.6 * second])
    merged = baselines.procrustes(heads, GROUPS)
    order = [0, 0, 1, 1]
    repeated = AttentionHeads(
        q_HEX=merged.q_HEX,
        k_KEX=merged.k_KEX[order],
        v_KFX=merged.v_KFX[order],
        o_HDF=merged.o_HDF,
        rotary=merged.rotary,
        keys="free",
        values="free",
    )
    torch.testing.assert_close(attend(repeated), attend(heads), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [baselines.mean_norm, baselines.procrustes_norm])
def test_restored_heads_have_the_root_mean_square_of_the_norms(method: object) -> None:
    heads = random_heads(Rotary(8))
    merged = method(heads, GROUPS)
    for before, after in ((heads.k_KEX, merged.k_KEX), (heads.v_KFX, merged.v_KFX)):
        for rows, (one, other) in zip(after, GROUPS, strict=True):
            wanted = math.sqrt((before[one].norm().item() ** 2 + before[other].norm().item() ** 2) / 2)
            assert rows.norm().item() == pytest.approx(wanted, rel=1e-12)


def test_alignment_is_refused_where_a_norm_stands_in_the_way() -> None:
    from dataclasses import replace

    with pytest.raises(CalibrationError, match="normed"):
        baselines.align(replace(random_heads(Rotary(8)), keys="normed"), GROUPS)
