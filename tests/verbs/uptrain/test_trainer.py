"""What is learned besides the original's distributions."""

import pytest
import torch

from mha2gqa.verbs.uptrain.trainer import hidden_error


def test_the_hidden_error_is_relative_to_the_energy() -> None:
    wanted = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    error = hidden_error([10 * wanted, wanted], [10 * wanted, wanted + 1], counts)
    assert error.item() == pytest.approx(3 / wanted.square().mean().item() / 2, rel=1e-5)
