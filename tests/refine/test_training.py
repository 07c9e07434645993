"""Training of one layer, and of all together: it helps, it touches nothing else, and what does not help is undone."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from mha2gqa.refine import joint
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent, descend, distil, relative_error
from mha2gqa.refine.joint import train_jointly
from mha2gqa.refine.replay import Replay
from tests.refine.pairs import Pair, make_pair, token_batches

CPU = torch.device("cpu")


def planted(tmp_path: Path):
    """A layer whose right answer is known to exist: the original's own module, disturbed."""
    pair = make_pair("llama")
    layer = pair.layers[0]
    module = pair.original.get_submodule(layer.module)
    replay = Replay(pair.original, token_batches(20, 48), Activations(10**9, tmp_path))
    pairs = list(zip(replay.calls(layer.module), replay.outputs(layer.module), strict=True))
    disturbed = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for parameter in disturbed.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.3 * parameter.abs().mean() * noise)
    return disturbed, pairs


def error(module: torch.nn.Module, pairs) -> float:
    with torch.no_grad():
        return sum(relative_error(call.run(module, CPU), wanted).item() for call, wanted in pairs) / len(pairs)


def test_distil_lowers_the_error_of_a_planted_layer_on_other_text(tmp_path: Path) -> None:
    module, pairs = planted(tmp_path)
    names = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"]
    before = error(module, pairs[:2])
    distil(module, names, pairs[2:], Descent(steps=150), CPU)
    assert error(module, pairs[:2]) < before / 2
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_distil_trains_what_it_is_told_and_is_repeatable(tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        module, pairs = planted(tmp_path)
        before = {name: parameter.clone() for name, parameter in module.named_parameters()}
        distil(module, ["o_proj.weight"], pairs, Descent(steps=5, seed=3), CPU)
        changed = {name for name, one in module.named_parameters() if not torch.equal(one, before[name])}
        assert changed == {"o_proj.weight"}
        results.append(module.o_proj.weight)
    assert torch.equal(*results)


def trained(pair: Pair, steps: int = 60) -> tuple[float, float]:
    batches = token_batches(10)
    names = {f"{layer.module}.{name}" for layer in pair.layers for name in layer.changed}
    dtypes = dict.fromkeys(names, pair.student.dtype)
    options = Descent(steps=steps)
    return train_jointly(
        pair.original, pair.student, pair.layers, batches[2:], batches[:2], dtypes, options, lambda *_: None
    )


def mean_kl(pair: Pair) -> float:
    """The divergence on the batches kept aside, by torch's own function, in float64."""
    values = []
    for batch in token_batches(10)[:2]:
        with torch.no_grad():
            wanted, answer = (model(input_ids=batch).logits.double() for model in (pair.original, pair.student))
        logs = [functional.log_softmax(logits.flatten(0, 1), -1) for logits in (answer, wanted)]
        values.append(functional.kl_div(*logs, reduction="batchmean", log_target=True).item())
    return sum(values) / len(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_joint_training_lowers_the_divergence_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    pair = make_pair("llama", dtype)
    others = {name: one.clone() for name, one in pair.student.named_parameters() if "self_attn" not in name}
    before = mean_kl(pair)
    first, last = trained(pair)
    assert (first, last) == pytest.approx((before, mean_kl(pair)), rel=1e-3)
    assert last < 0.93 * first
    assert {one.dtype for one in pair.student.parameters()} == {dtype}
    assert not any(one.requires_grad for one in pair.student.parameters())
    assert all(torch.equal(one, pair.student.get_parameter(name)) for name, one in others.items())


def test_joint_training_takes_the_steps_that_learn_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rates that a model cannot stand at all the lower ones are tried, and the best of them is taken."""
    taken: list[tuple[int, float]] = []

    def told(parameters, batches, loss, options: Descent, advance) -> None:
        taken.append((options.steps, options.rate))
        descend(parameters, batches, loss, options, advance)

    monkeypatch.setattr(joint, "descend", told)
    monkeypatch.setattr(joint, "RATE", 0.64)
    first, last = trained(make_pair("llama"))
    assert taken[:-1] == [(3, 0.64), (3, 0.16), (3, 0.04), (3, 0.01)][: len(taken) - 1]
    assert taken[-1][0] == 60 and taken[-1][1] < 0.64
    assert last < 0.95 * first


@pytest.mark.parametrize("rate", [1e4, float("inf")])
def test_joint_training_that_makes_it_worse_is_taken_back(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair("llama")
    before = copy.deepcopy(pair.student.state_dict())
    monkeypatch.setattr(joint, "RATE", rate)
    first, last = trained(pair, steps=3)
    assert first == last == pytest.approx(mean_kl(pair), rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.student.state_dict().items())
