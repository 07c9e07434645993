"""The refitted output projection against ridge regression by numpy, as a least-squares problem with rows added."""

import numpy as np
import pytest
import torch
from torch import nn

from mha2gqa.refine.refit import RIDGES, Linear, ends_in, refit
from mha2gqa.refine.replay import Call

WIDTH, INNER, TOKENS = 6, 10, 40
CPU = torch.device("cpu")


class Attention(nn.Module):
    """Something with an output projection at its end, or with a factor behind it."""

    def __init__(self, *, bias: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, INNER, bias=False)
        self.o_proj = nn.Linear(INNER, WIDTH, bias=bias)
        self.factor = factor

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(states))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.heads(states)) * self.factor


def make(*, bias: bool, factor: float = 1.0) -> tuple[Attention, list[tuple[Call, torch.Tensor]]]:
    torch.manual_seed(1)
    module = Attention(bias=bias, factor=factor).double().requires_grad_(requires_grad=False)
    states = torch.randn(3, 2, TOKENS // 2, WIDTH, dtype=torch.float64)
    wanted = torch.randn(3, 2, TOKENS // 2, WIDTH, dtype=torch.float64)
    return module, [(Call((one,), {}), target) for one, target in zip(states, wanted, strict=True)]


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_ridge_regression_towards_what_was_there(bias: bool) -> None:
    module, pairs = make(bias=bias)
    before = module.o_proj.weight.clone().numpy()
    offset = module.o_proj.bias.clone().numpy() if bias else 0.0
    inputs = np.concatenate([module.heads(call.args[0]).flatten(0, 1).numpy() for call, _ in pairs])
    targets = np.concatenate([wanted.flatten(0, 1).numpy() for _, wanted in pairs]) - offset
    root = np.sqrt(RIDGES[-1] * np.square(inputs).sum() / INNER)
    rows = np.concatenate([inputs, root * np.eye(INNER)])
    expected = np.linalg.lstsq(rows, np.concatenate([targets, root * before.T]), rcond=None)[0].T
    refit(module, "o_proj", pairs, pairs, CPU)
    assert module.o_proj.weight.numpy() == pytest.approx(expected, abs=1e-10)
    if bias:
        assert np.array_equal(module.o_proj.bias.numpy(), offset)


def test_it_believes_text_as_far_as_other_text_confirms() -> None:
    """Half of what is wanted is what is there, and half is noise: there is a best firmness, and it is taken."""
    module, pairs = make(bias=False)
    before = module.o_proj.weight.clone()
    shared = torch.randn(before.shape, generator=torch.Generator().manual_seed(2), dtype=before.dtype) / 2

    def wanted(states: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return module.heads(states) @ (before + shared).T + 3 * noise

    training, aside = ([(call, wanted(call.args[0], noise)) for call, noise in some] for some in (pairs[:2], pairs[2:]))
    errors = {}
    z, y, other_z, other_y = (
        torch.cat([one.flatten(0, 1) for one in (side(call, want) for call, want in some)])
        for some in (training, aside)
        for side in (lambda call, _: module.heads(call.args[0]), lambda _, want: want)
    )
    for ridge in RIDGES:
        firm = ridge * z.square().mean(dim=0).mean() * len(z) * torch.eye(INNER, dtype=z.dtype)
        found = torch.linalg.solve(z.T @ z + firm, (y.T @ z + before @ firm).T).T
        errors[(other_y - other_z @ found.T).square().sum().item()] = found
    refit(module, "o_proj", training, aside, CPU)
    best = errors[min(errors)]
    assert best is not errors[[*errors][-1]], "the loosest is the best one: nothing is tested"
    torch.testing.assert_close(module.o_proj.weight.data, best)


def test_of_ridges_that_lose_hardly_more_than_the_best_it_takes_the_least_firm() -> None:
    firmer_than_the_best = looser_than_the_best = 0
    for seed in range(12):
        draw = np.random.default_rng(seed)
        before, truth = draw.normal(size=(2, WIDTH, INNER))
        z, other_z = draw.normal(size=(2, 60, INNER)) * np.geomspace(1, 0.05, INNER)
        y, other_y = (one @ (before + truth / 4).T + draw.normal(size=(60, WIDTH)) / 2 for one in (z, other_z))
        lost = []
        for ridge in RIDGES:
            root = np.sqrt(ridge * np.square(z).sum() / INNER) * np.eye(INNER)
            rows = np.concatenate([z, root]), np.concatenate([y, root @ before.T])
            lost.append(np.square(other_y - other_z @ np.linalg.lstsq(*rows, rcond=None)[0]).sum())
        within = [RIDGES[at] for at, one in enumerate(lost) if one <= 1.02 * min(lost)]
        sums, aside = (
            Linear(*(torch.from_numpy(one) for one in (a.T @ a, b.T @ a)), energy=float(np.square(b).sum()))
            for a, b in ((z, y), (other_z, other_y))
        )
        chosen = sums.fit(torch.from_numpy(before), aside)[1]
        assert chosen == min(within), (seed, lost)
        best = RIDGES[int(np.argmin(lost))]
        looser_than_the_best += chosen < best
        firmer_than_the_best += chosen > RIDGES[-1]
    assert looser_than_the_best, "the best was the least firm everywhere: nothing is tested"
    assert firmer_than_the_best, "the least firm of all was taken everywhere: nothing is tested"


def test_inputs_that_are_all_alike_keep_the_projection_where_nothing_is_known() -> None:
    module, pairs = make(bias=False)
    alike = [(Call((torch.ones_like(call.args[0]),), {}), wanted) for call, wanted in pairs]
    direction = module.heads(torch.ones(1, WIDTH, dtype=torch.float64))
    other = torch.randn(INNER, 1, dtype=torch.float64)
    other -= direction.T * (direction @ other) / direction.square().sum()
    before = module.o_proj.weight @ other
    refit(module, "o_proj", alike, alike, CPU)
    assert torch.isfinite(module.o_proj.weight).all()
    torch.testing.assert_close(module.o_proj.weight @ other, before)


def test_a_module_may_do_more_behind_its_projection() -> None:
    for factor, ends in ((1.0, True), (2.0, False)):
        module, pairs = make(bias=False, factor=factor)
        assert ends_in(module, "o_proj", pairs[0][0], CPU) == ends
