"""The host's attention without its norms: the same function, and back again."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.refine.descend import Descent
from mha2gqa.refine.latent.joint import train_latent_jointly
from mha2gqa.refine.latent.modules import trained_names, values_of, with_norms, without_norms
from mha2gqa.targets.latent.host import LatentHost
from tests.families.oracle import input_ids
from tests.families.tiny import tiny_config, tiny_model
from tests.targets.latent.models import fitted_host, whole_host
from tests.targets.latent.test_exact import logits

MODULE = "model.layers.1.self_attn"


@pytest.fixture(params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """With biases, the queries of the host have a norm, too."""
    return tiny_model(tiny_config(request.param, num_key_value_heads=2))


def test_without_norms_it_is_the_same(model: PreTrainedModel) -> None:
    student = fitted_host(model, whole_host(model))
    wanted = logits(student)
    free = without_norms(student.get_submodule(MODULE), torch.float32)
    assert not any("norm" in name for name in trained_names(free))
    entries = [float(free.get_parameter(name).abs().max()) for name in trained_names(free) if name.endswith("weight")]
    assert max(entries) < 1e3 * min(entries), "no part is too small to be trained beside the others"
    student.get_submodule("model.layers.1").self_attn = free
    assert (logits(student) - wanted).abs().max() < 1e-4


def test_what_was_learned_is_brought_back(model: PreTrainedModel) -> None:
    student = fitted_host(model, whole_host(model))
    module = student.get_submodule(MODULE)
    free = without_norms(module, torch.float32)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with_norms(module, free)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in trained_names(free):
            free.get_parameter(name).mul_(1 + 0.1 * torch.randn(1, generator=generator))
    with_norms(module, free)
    changed = logits(student)
    student.get_submodule("model.layers.1").self_attn = free
    assert (logits(student) - changed).abs().max() < 1e-4


def test_values_are_a_view() -> None:
    model = tiny_model(tiny_config("llama"))
    host = whole_host(model)
    module: nn.Module = fitted_host(model, host).get_submodule(MODULE)
    before = module.get_parameter("kv_b_proj.weight").detach().clone()
    values_of(module, host.shape).zero_()
    after = module.get_parameter("kv_b_proj.weight").detach().unflatten(0, (host.shape.heads, -1))
    assert (after[:, host.shape.width :] == 0).all()
    assert torch.equal(after[:, : host.shape.width], before.unflatten(0, (host.shape.heads, -1))[:, : host.shape.width])


def test_layers_are_trained_together(model: PreTrainedModel) -> None:
    whole = whole_host(model)
    host = LatentHost(whole.source, whole.key, whole.latent - 16)
    student = fitted_host(model, host)
    modules = [layer.module for layer in host.source.layers]
    batches = [input_ids(24, seed=seed) for seed in range(4)]
    options, done = Descent(steps=30), []
    before, after = train_latent_jointly(
        model, student, modules, batches, batches[:1], options, lambda *step: done.append(step)
    )
    assert after < 0.9 * before
    assert {total for _, total in done} == {sum(steps for steps, _ in done)}
    assert all(hasattr(student.get_submodule(module).kv_a_layernorm, "weight") for module in modules)
    found, wanted = (torch.log_softmax(logits_of(one, batches[0]), -1) for one in (student, model))
    measured = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert measured == pytest.approx(after, rel=1e-2)


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found
