"""What is linear in two unknowns, each found with the other held: by numpy's least squares, and a planted answer."""

from typing import Any

import numpy as np
import pytest
import torch

from mha2gqa.refine.refit_values import Bilinear

HEADS, GROUPS, ROWS, WIDTH, OUTPUTS, TOKENS = 6, 2, 5, 2, 7, 400
SHARED = HEADS // GROUPS


def draw(seed: int = 0) -> Any:
    return lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answers(s_BHN: torch.Tensor, mixing_GFN: torch.Tensor, output_DZ: torch.Tensor) -> torch.Tensor:
    """What the layer gives, token by token and head by head, `[B, D]`."""
    total = torch.zeros(len(s_BHN), OUTPUTS, dtype=torch.float64)
    for head in range(HEADS):
        columns = output_DZ[:, head * WIDTH : (head + 1) * WIDTH]
        for token in range(len(s_BHN)):
            total[token] += columns @ (mixing_GFN[head // SHARED] @ s_BHN[token, head])
    return total


def sums(s_BHN: torch.Tensor, y_BD: torch.Tensor) -> Bilinear:
    found = Bilinear.empty(HEADS, ROWS, OUTPUTS, SHARED, torch.device("cpu"))
    for some, wanted in zip(s_BHN.split(150), y_BD.split(150), strict=True):
        found.add(some.flatten(1), wanted)
    return found


def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that go together, mixtures, what reads them, and the outputs, which they give exactly."""
    apart, together = draw(1)(TOKENS, HEADS, ROWS), draw(2)(TOKENS, 1, ROWS)
    s_BHN = apart + together
    mixing_GFN, output_DZ = draw(3)(GROUPS, WIDTH, ROWS), draw(4)(OUTPUTS, HEADS * WIDTH)
    return s_BHN, mixing_GFN, output_DZ, answers(s_BHN, mixing_GFN, output_DZ)


def test_the_error_is_that_of_the_tokens() -> None:
    s_BHN, mixing_GFN, before_DZ, _ = planted()
    y_BD = draw(5)(TOKENS, OUTPUTS)
    known = sums(s_BHN, y_BD)
    output_DZ, _ = known.seen(mixing_GFN).fit(before_DZ, known.seen(mixing_GFN))
    expected = (y_BD - answers(s_BHN, mixing_GFN, output_DZ)).square().sum() / y_BD.square().sum()
    assert known.seen(mixing_GFN).error(output_DZ) == pytest.approx(expected.item(), rel=1e-9)


def test_mixtures_are_least_squares_for_the_output_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """After more steps than there are unknowns, which is where conjugate gradients end."""
    monkeypatch.setattr("mha2gqa.refine.refit_values._STEPS", 30)
    s_BHN, before_GFN, output_DZ, _ = planted()
    y_BD = draw(5)(TOKENS, OUTPUTS)
    columns = []
    for place in range(before_GFN.numel()):
        one = torch.zeros(before_GFN.numel(), dtype=torch.float64)
        one[place] = 1
        columns.append(answers(s_BHN, one.view_as(before_GFN), output_DZ).flatten().numpy())
    expected = np.linalg.lstsq(np.stack(columns, axis=1), y_BD.flatten().numpy(), rcond=None)[0]
    found = sums(s_BHN, y_BD)._mixtures(output_DZ, before_GFN)
    assert found.flatten().numpy() == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())


def test_a_planted_answer_is_found_where_refitted_outputs_alone_do_not_help_much() -> None:
    s_BHN, mixing_GFN, output_DZ, y_BD = planted()
    known, start_GFN = sums(s_BHN, y_BD), mixing_GFN + draw(6)(GROUPS, WIDTH, ROWS)
    read_DZ, _ = known.seen(start_GFN).fit(output_DZ, known.seen(start_GFN))
    alone = known.seen(start_GFN).error(read_DZ)
    found_GFN, read_DZ = known.solve(start_GFN, output_DZ, known)
    left = (y_BD - answers(s_BHN, found_GFN, read_DZ)).square().sum().item()
    assert alone > 0.1
    assert left < 0.001 * known.energy


def test_rows_that_nobody_uses_change_nothing_and_leave_it_finite() -> None:
    s_BHN, mixing_GFN, output_DZ, y_BD = planted()
    s_BHN[..., -1] = 0
    known = sums(s_BHN, y_BD)
    found_GFN, read_DZ = known.solve(mixing_GFN, output_DZ, known)
    assert torch.isfinite(found_GFN).all()
    assert torch.isfinite(read_DZ).all()
    torch.testing.assert_close(found_GFN[..., -1], mixing_GFN[..., -1])
