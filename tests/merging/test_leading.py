"""Leading eigenvectors by iteration, held against a full decomposition."""

import pytest
import torch

from mha2gqa.merging.leading import leading_eigenvectors

COUNT, SIZE = 4, 64


def gram_with(energies: torch.Tensor) -> torch.Tensor:
    random = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turn = torch.linalg.qr(random).Q
    return turn * energies @ turn.mT


SPECTRA = {
    "slow": 1 / torch.arange(1, SIZE + 1, dtype=torch.float64),
    "fast": 0.5 ** torch.arange(SIZE, dtype=torch.float64),
    "even": torch.ones(SIZE, dtype=torch.float64),
    "of few directions": (torch.arange(SIZE) < COUNT).double(),
    "of too few directions": (torch.arange(SIZE) < COUNT - 1).double(),
}


@pytest.mark.parametrize("energies", SPECTRA.values(), ids=SPECTRA)
def test_they_keep_nearly_what_can_be_kept(energies: torch.Tensor) -> None:
    gram = gram_with(energies)
    leading = leading_eigenvectors(gram, COUNT)
    torch.testing.assert_close(leading.mT @ leading, torch.eye(COUNT, dtype=torch.float64))
    kept, most = float((leading * (gram @ leading)).sum()), float(energies[:COUNT].sum())
    assert kept >= most - 0.01 * float(energies[COUNT:].sum()) - 1e-12


def test_a_small_matrix_is_decomposed_as_a_whole() -> None:
    gram = gram_with(SPECTRA["slow"])
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -16:]
    torch.testing.assert_close(leading_eigenvectors(gram, 16), vectors, rtol=0, atol=0)
