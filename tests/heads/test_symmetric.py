"""Half-computed products, held against whole ones."""

import pytest
import torch

from mha2gqa.heads import symmetric


@pytest.mark.parametrize("size", [1, 3, 8, 9, 31])
def test_it_is_the_whole_product(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "_LARGE", 2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    moment = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    moment = moment @ moment.T
    torch.testing.assert_close(symmetric.symmetric_product(rows @ moment, rows), rows @ moment @ rows.T)
    many = rows[None].expand(3, -1, -1)
    torch.testing.assert_close(symmetric.symmetric_product(many, many), many @ many.mT)
