"""What is guessed of a layer's inputs, held against the whole moment in float64."""

import pytest
import torch

from mha2gqa.heads.metric import LowRank
from mha2gqa.refine.prior import Prior

CPU = torch.device("cpu")


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sized(moment: torch.Tensor) -> torch.Tensor:
    return moment * (len(moment) / moment.trace())


def whole(guess: LowRank) -> torch.Tensor:
    factor = guess.factor_XS.double()
    return torch.diag(guess.diagonal_X.double()) + factor @ factor.T


def guessed(prior: Prior, gain: torch.Tensor | None, *, has_bias: bool = False) -> LowRank:
    guess = prior.statistics(gain, has_bias=has_bias).inputs
    assert isinstance(guess, LowRank)
    return guess


def written(embedding: torch.Tensor, outputs: list[torch.Tensor]) -> torch.Tensor:
    """The moment as its definition says."""
    moment = sized(embedding.double().T @ embedding.double())
    for output in outputs:
        moment = moment + 0.5 * sized(output.double() @ output.double().T)
    return sized(moment)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_narrow_model_has_its_whole_moment(has_bias: bool) -> None:
    width = 48
    embedding, outputs = random(300, width, seed=0), [random(width, 64, seed=number) for number in (1, 2)]
    gain = random(width, seed=3)
    prior = Prior(embedding.bfloat16(), width, CPU)
    for output in outputs:
        prior.add(output)
    gained = gain.double()[:, None] * written(embedding.bfloat16(), outputs) * gain.double()
    wanted = torch.block_diag(gained, torch.ones(1, 1, dtype=torch.float64)) if has_bias else gained
    found = whole(guessed(prior, gain, has_bias=has_bias))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    queries = prior.statistics(gain, has_bias=has_bias).query_inputs
    assert isinstance(queries, LowRank)
    wanted[:width, :width] = 0.1 * gained + 0.9 * gained.trace() / width * torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(whole(queries), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_a_wide_model_keeps_what_stands_out_and_every_channels_energy() -> None:
    width, planted = 640, 8
    loud = torch.linalg.qr(random(width, planted, seed=0)).Q
    channels = 1 + random(width, seed=1).abs()
    embedding = (20 * random(4096, planted, seed=2)) @ loud.T + random(4096, width, seed=3) * channels
    outputs = [random(width, 512, seed=number) for number in (4, 5)]
    prior = Prior(embedding, width, CPU)
    for output in outputs:
        prior.add(output)
    guess, wanted = guessed(prior, None), written(embedding, outputs)
    found = whole(guess)
    assert guess.factor_XS.shape[1] < width // 2
    assert (guess.diagonal_X >= 0).all()
    torch.testing.assert_close(found.diagonal(), wanted.diagonal(), rtol=1e-3, atol=0)
    for seen in (loud.double().T @ found @ loud.double(), loud.double().T @ wanted @ loud.double()):
        assert seen.diagonal().min() > 5
    beside = torch.linalg.matrix_norm(wanted - torch.diag(wanted.diagonal()))
    assert torch.linalg.matrix_norm(found - wanted) < 0.35 * beside


def test_without_an_embedding_inputs_count_as_even() -> None:
    for embedding in (None, random(50, 24, seed=0)):
        statistics = Prior(embedding, 16, CPU).statistics(None, has_bias=False)
        for guess in (statistics.inputs, statistics.query_inputs):
            assert isinstance(guess, LowRank)
            torch.testing.assert_close(whole(guess), torch.eye(16, dtype=torch.float64), rtol=1e-6, atol=0)
