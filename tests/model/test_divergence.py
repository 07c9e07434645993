"""Divergence and cross-entropy against plain loops in fp64, their gradients against autograd's, what counts in them."""

import pytest
import torch
from torch.nn import functional

from mha2gqa.model import divergence
from mha2gqa.model.divergence import divergence_terms, mean_divergence, summed_divergence, target_losses


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
    monkeypatch.setattr(divergence, "_positions", lambda *shape: positions)
    wanted, answer, counts = _logits(1), _logits(2).requires_grad_(), _counts()
    spans: list[slice] = []

    def give(span: slice) -> torch.Tensor:
        spans.append(span)
        return wanted[:, span]

    (3 * summed_divergence(give, answer, counts, temperature)).backward()
    exact = answer.detach().double().requires_grad_()
    loss = _plain(wanted, exact, counts, temperature)
    (3 * loss).backward()
    torch.testing.assert_close(
        summed_divergence(give, answer, counts, temperature).double(), loss.detach(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(answer.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    assert (len(spans) > 2) == (positions < 7)


def test_a_masked_vocabulary_gives_no_nan() -> None:
    wanted, answer = _logits(1), _logits(2)
    wanted[..., 3] = answer[..., 3] = -torch.inf
    answer.requires_grad_()
    loss = summed_divergence(lambda span: wanted[:, span], answer, _counts())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(answer.grad).all()


def test_nothing_is_lost_between_equal_models() -> None:
    logits = _logits(1).requires_grad_()
    loss = summed_divergence(lambda span: logits.detach()[:, span], logits, _counts())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max().item() == 0


def test_the_original_is_asked_for_a_few_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_positions", lambda *shape: 3)
    spans: list[slice] = []

    def give(span: slice) -> torch.Tensor:
        spans.append(span)
        return _logits(1)[:, span]

    summed_divergence(give, _logits(2), _counts())
    assert spans == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_the_mean_and_its_gradient_are_those_of_a_loop_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, answer = _logits(1), _logits(2).requires_grad_()
    mean_divergence(wanted, answer).backward()
    exact = answer.detach().double().requires_grad_()
    mean = _plain(wanted, exact, torch.ones(2, 7), 1.0) / 14
    mean.backward()
    torch.testing.assert_close(mean_divergence(wanted, answer).double(), mean.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(answer.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)
    whole, gradient = mean_divergence(wanted, answer), answer.grad
    monkeypatch.setattr(divergence, "_MADE_AGAIN", 4)
    answer.grad = None
    mean_divergence(wanted, answer).backward()
    torch.testing.assert_close(mean_divergence(wanted, answer), whole)
    assert torch.equal(answer.grad, gradient)


def test_both_ways_to_train_on_it_have_the_same_gradient() -> None:
    wanted, answer = _logits(1), _logits(2).requires_grad_()
    (mean,) = torch.autograd.grad(mean_divergence(wanted, answer), answer)
    (summed,) = torch.autograd.grad(summed_divergence(lambda span: wanted[:, span], answer, torch.ones(2, 7)), answer)
    torch.testing.assert_close(14 * mean, summed)


def test_what_only_the_answer_rules_out_is_infinitely_far_and_what_the_original_does_is_nothing() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    ruled_out = logits.clone()
    ruled_out[0, 1] = -torch.inf
    first, second = logits.log_softmax(-1), ruled_out.log_softmax(-1)
    assert divergence_terms(first, second).sum() == torch.inf
    backwards = divergence_terms(second, first)
    assert backwards[0, 1] == 0
    assert backwards.sum().item() == pytest.approx(-torch.log(1 - first[0, 1].exp()).item())


@pytest.mark.parametrize("chunk", [1 << 22, 40])
def test_cross_entropy_is_that_of_torch_and_leaves_out_what_is_not_predicted(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    labels = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(3))
    labels[0, 3] = labels[1, 0] = -100
    logits, exact = _logits(1).requires_grad_(), _logits(1).double().requires_grad_()
    losses, count = target_losses(logits, labels)
    wanted = functional.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="sum")
    assert count == 12
    assert len(losses) == (1 if chunk > 40 else 7)
    assert sum(losses.tolist()) == pytest.approx(wanted.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    (exactly,) = torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(gradient.double(), exactly, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("vocabulary", "rows"), [(2_048, 128), (128_256, 64), (1 << 23, 64)])
def test_a_chunk_fits_the_cache_of_a_cpu_but_has_rows_enough_for_a_product(vocabulary: int, rows: int) -> None:
    assert divergence._positions(4, vocabulary, torch.device("cpu")) == rows // 4


def test_a_chunk_of_an_accelerator_is_bounded_by_its_memory() -> None:
    assert divergence._positions(4, 128_256, torch.device("cuda")) == (1 << 22) // 128_256 // 4
    assert divergence._positions(64, 1 << 22, torch.device("cuda")) == 1
