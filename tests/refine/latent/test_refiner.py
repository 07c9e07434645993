"""Layers fitted and improved on text: exact where the cache is wide enough, better with each step where it is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from mha2gqa.progress import QUIET
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent, relative_error
from mha2gqa.refine.latent.files import LatentFiles
from mha2gqa.refine.latent.modules import OUTPUT, values_of
from mha2gqa.refine.latent.refiner import LatentRefiner
from mha2gqa.refine.latent.refit import refit_latent
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.refine import Refinement
from mha2gqa.refine.replay import Replay
from mha2gqa.targets.latent.host import LatentHost
from tests.families.oracle import input_ids
from tests.families.tiny import tiny_config, tiny_model
from tests.targets.latent.models import fitted_host, whole_host
from tests.targets.latent.test_exact import logits

BATCHES = [input_ids(64, seed=seed) for seed in range(32)]


def refined(
    model: PreTrainedModel,
    host: LatentHost,
    refinement: Refinement | None,
    directory: Path,
    batches: list[torch.Tensor],
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    student, files = build_latent_student(model, host), LatentFiles(directory / str(refinement), host)
    options, memory = Descent(steps=60, rate=0.003), Activations(1 << 30, directory)
    LatentRefiner(model, student, files, batches, refinement, options, memory).run(QUIET)
    return student, [files.report(number) for number in range(len(host.source.layers))]


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
        ("qwen2", {}),
        ("granite", {"residual_multiplier": 0.4, "attention_multiplier": 0.2, "embedding_multiplier": 3.0}),
        ("olmo", {}),
        ("smollm3", {}),
    ],
)
def test_nothing_is_lost_where_the_cache_is_wide_enough(
    model_type: str, overrides: dict[str, float], tmp_path: Path
) -> None:
    """So the original's outputs are in the units of the host's stream, and the host reads what the original reads."""
    model = tiny_model(tiny_config(model_type, **overrides))
    student, reports = refined(model, whole_host(model), "refit", tmp_path, BATCHES[:8])
    assert (logits(student) - logits(model)).abs().max() < 1e-3
    assert all(error < 1e-8 for report in reports for error in report["errors"].values())


def test_every_step_helps(tmp_path: Path) -> None:
    model = tiny_model(tiny_config("llama", rms_norm_eps=1e-3))
    whole = whole_host(model)
    host = LatentHost(whole.source, whole.key, 40)
    losses = []
    for refinement in (None, "distil"):
        student, reports = refined(model, host, refinement, tmp_path, BATCHES)
        losses.append(float((logits(student) - logits(model)).square().mean()))
    assert losses[1] < 0.97 * losses[0]
    first = reports[0]["errors"]
    assert first["distil"] < first["refit"] <= first["fitted"]
    for report in reports:
        errors = report["errors"]
        assert list(errors) == ["fitted", "refit", "distil"]
        assert errors["distil"] <= errors["refit"] <= errors["fitted"]
        assert 0 < report["values_lost"] < 1
    assert [report["module"] for report in reports] == [layer.module for layer in host.source.layers]


@torch.no_grad()
def test_a_refit_is_least_squares(tmp_path: Path) -> None:
    """No small step in any direction of values or outputs lowers the error by more than rounding and ridge leave."""
    model = tiny_model(tiny_config("llama"))
    whole = whole_host(model)
    host = LatentHost(whole.source, whole.key, 40)
    student = fitted_host(model, host)
    name = host.source.layers[0].module
    memory = Activations(1 << 30, tmp_path)
    calls = list(Replay(student, BATCHES, memory).calls(name))
    outputs = list(Replay(model, BATCHES, memory).outputs(name))
    module = student.get_submodule(name)
    before = error(module, calls, outputs)
    examples = list(zip(calls, outputs, strict=True))
    refit_latent(module, host.shape, examples, examples, torch.device("cpu"))
    after = error(module, calls, outputs)
    assert after < 0.9 * before
    generator = torch.Generator().manual_seed(0)
    for part in (values_of(module, host.shape), module.get_parameter(f"{OUTPUT}.weight")):
        step = 1e-3 * part.abs().mean() * torch.randn(part.shape, generator=generator)
        part += step
        assert error(module, calls, outputs) > after * (1 - 1e-3)
        part -= step


def error(module: torch.nn.Module, calls: list, outputs: list) -> float:
    device = torch.device("cpu")
    pairs = zip(calls, outputs, strict=True)
    return sum(float(relative_error(call.run(module, device), wanted)) for call, wanted in pairs)
