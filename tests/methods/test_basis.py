"""Leading mixtures of rows, by iteration and as a whole, held against a full decomposition by another route."""

import pytest
import torch

from mha2gqa.methods.aligned import basis

COUNT, SIZE = 4, 64


def random(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_with(energies: torch.Tensor) -> torch.Tensor:
    turn = torch.linalg.qr(random(1)).Q
    return turn * energies @ turn.mT


PLACES = torch.arange(SIZE, dtype=torch.float64)
SPECTRA = {
    "slow": 1 / (1 + PLACES),
    "fast": 0.5**PLACES,
    "even": torch.ones(SIZE, dtype=torch.float64),
    "of few directions": (PLACES < COUNT).double(),
    "of too few directions": (PLACES < COUNT - 1).double(),
}
WEIGHT = random(2) @ random(2).T / SIZE


@pytest.mark.parametrize("many", [8, 1000], ids=["iterated", "whole"])
@pytest.mark.parametrize("energies", SPECTRA.values(), ids=SPECTRA)
def test_they_keep_nearly_what_can_be_kept(energies: torch.Tensor, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basis, "_MANY", many)
    gram = gram_with(energies)
    root = torch.linalg.cholesky(gram + 1e-15 * torch.eye(SIZE, dtype=torch.float64))
    values = torch.linalg.eigvalsh(root.T @ WEIGHT @ root)
    total, most = float(values.sum()), float(values[-COUNT:].sum())
    mixing = basis.leading_mixtures(WEIGHT, gram, COUNT)
    # Rows are V with V Vᵀ = G. Each is sought in the mixtures by least squares, and W says what is missing.
    missing = root - root @ torch.linalg.pinv(mixing @ root, rtol=1e-9) @ (mixing @ root)
    lost = float((WEIGHT * (missing @ missing.T)).sum())
    assert (total - most) * (1 - 1e-6) - 1e-9 * total <= lost <= 1.01 * (total - most) + 1e-9 * total
    assert basis.lost_energy(WEIGHT, gram, COUNT) == pytest.approx(total - most, rel=1e-6, abs=1e-9 * total)


def test_a_search_that_runs_out_of_rounds_ends_with_what_it_measured_last(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = gram_with(SPECTRA["fast"])
    monkeypatch.setattr(basis, "_ROUNDS", 2)
    root = torch.linalg.cholesky(gram + 1e-15 * torch.eye(SIZE, dtype=torch.float64))
    mixing = basis.leading_mixtures(WEIGHT, gram, COUNT)
    missing = root - root @ torch.linalg.pinv(mixing @ root, rtol=1e-9) @ (mixing @ root)
    assert float((WEIGHT * (missing @ missing.T)).sum()) <= 1.01 * basis.lost_energy(WEIGHT, gram, COUNT)


def test_what_rounding_leaves_below_zero_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as uneven as those of a plane that hardly turns: no root of Cholesky's, and the same leading rows."""
    monkeypatch.setattr(basis, "_MANY", 1000)
    turn, sizes = torch.linalg.qr(random(3)).Q, SPECTRA["fast"]
    weight = turn * (sizes - 1e-9 * (sizes < 1e-9)) @ turn.mT
    assert int(torch.linalg.cholesky_ex(basis.firm(weight, weight.dtype)).info) > 0
    gram = torch.eye(SIZE, dtype=torch.float64)
    mixing = basis.leading_mixtures(weight, gram, COUNT)
    kept = torch.linalg.qr(mixing.mT).Q
    torch.testing.assert_close(kept @ kept.mT, turn[:, :COUNT] @ turn[:, :COUNT].mT, rtol=0, atol=1e-7)
    assert basis.lost_energy(weight, gram, COUNT) == pytest.approx(float(sizes[COUNT:].sum()), rel=1e-6)
