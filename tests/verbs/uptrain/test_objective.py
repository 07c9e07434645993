"""The divergence against a plain loop in fp64, its gradient against autograd's, and which positions count."""

import pytest
import torch
from torch.nn import functional

from mha2gqa.verbs.uptrain import objective
from mha2gqa.verbs.uptrain.objective import cross_entropy, divergence, hidden_error


def _logits(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def _counts() -> torch.Tensor:
    return torch.tensor([[1.0, 1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0]])


def _plain(wanted: torch.Tensor, answer: torch.Tensor, counts: torch.Tensor, temperature: float) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for block in range(wanted.shape[0]):
        for place in range(wanted.shape[1]):
            p = (wanted[block, place].double() / temperature).softmax(-1)
            q = (answer[block, place].double() / temperature).softmax(-1)
            total = total + counts[block, place] * temperature**2 * (p * (p.log() - q.log())).sum()
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("positions", [1, 3, 100])
def test_the_divergence_and_its_gradient_are_those_of_a_loop(
    temperature: float, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "_positions", lambda *shape: positions)
    wanted, answer, counts = _logits(1), _logits(2).requires_grad_(), _counts()
    spans: list[slice] = []

    def give(span: slice) -> torch.Tensor:
        spans.append(span)
        return wanted[:, span]

    (3 * divergence(give, answer, counts, temperature)).backward()
    exact = answer.detach().double().requires_grad_()
    loss = _plain(wanted, exact, counts, temperature)
    (3 * loss).backward()
    torch.testing.assert_close(divergence(give, answer, counts, temperature).double(), loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(answer.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    assert (len(spans) > 2) == (positions < 7)


def test_a_masked_vocabulary_gives_no_nan() -> None:
    wanted, answer = _logits(1), _logits(2)
    wanted[..., 3] = answer[..., 3] = -torch.inf
    answer.requires_grad_()
    loss = divergence(lambda span: wanted[:, span], answer, _counts())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(answer.grad).all()


def test_nothing_is_lost_between_equal_models() -> None:
    logits = _logits(1).requires_grad_()
    loss = divergence(lambda span: logits.detach()[:, span], logits, _counts())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max().item() == 0


def test_the_original_is_asked_for_a_few_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_positions", lambda *shape: 3)
    spans: list[slice] = []

    def give(span: slice) -> torch.Tensor:
        spans.append(span)
        return _logits(1)[:, span]

    divergence(give, _logits(2), _counts())
    assert spans == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_cross_entropy_is_that_of_torch_and_leaves_out_what_is_not_predicted() -> None:
    labels = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(3))
    labels[0, 3] = labels[1, 0] = -100
    total, count = cross_entropy(_logits(1), labels)
    wanted = functional.cross_entropy(_logits(1).flatten(0, 1), labels.flatten(), reduction="sum")
    assert count == 12
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_hidden_error_is_relative_to_the_energy() -> None:
    wanted = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    error = hidden_error([10 * wanted, wanted], [10 * wanted, wanted + 1], counts)
    assert error.item() == pytest.approx(3 / wanted.square().mean().item() / 2, rel=1e-5)


@pytest.mark.parametrize(("vocabulary", "rows"), [(2_048, 128), (128_256, 64), (1 << 23, 64)])
def test_a_chunk_fits_the_cache_of_a_cpu_but_has_rows_enough_for_a_product(vocabulary: int, rows: int) -> None:
    assert objective._positions(4, vocabulary, torch.device("cpu")) == rows // 4


def test_a_chunk_of_an_accelerator_is_bounded_by_its_memory() -> None:
    assert objective._positions(4, 128_256, torch.device("cuda")) == (1 << 22) // 128_256 // 4
    assert objective._positions(64, 1 << 22, torch.device("cuda")) == 1
