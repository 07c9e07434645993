"""The host of a model in memory: every tensor that is only renamed is the original's own.

Attention holds zeros until `install`. The student is a model of the host's class, loaded strictly.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.hosts.host import Recipe
from mha2gqa.targets.latent.host import LatentHost


@torch.no_grad()
def build_latent_student(original: PreTrainedModel, host: LatentHost) -> PreTrainedModel:
    """Build the host's model around the original's weights.

    Args:
        original: The original, loaded.
        host: What it becomes.
    """
    plan = host.model.blueprint
    state = original.state_dict()
    like = next(original.parameters())
    tensors = {recipe.name: _made(recipe, state, plan.module_shapes[recipe.name]) for recipe in host.others()}
    for name, shape in plan.module_shapes.items():
        if name not in tensors:
            tensors[name] = like.new_zeros(shape)
    if host.source.facts.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    with torch.device("meta"):
        student: PreTrainedModel = type(plan.model)(plan.config)
    student.load_state_dict(tensors, assign=True)
    student.tie_weights()
    _fill_buffers(student, like.device)
    student.set_attn_implementation(original.config._attn_implementation)
    student.requires_grad_(requires_grad=False).eval()
    return student


def _made(recipe: Recipe, state: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    sources = [state[name] for name in recipe.sources]
    if recipe.fill is not None:
        return sources[0].new_full(shape, recipe.fill)
    return sources[0] if recipe.make is None else recipe.make(*sources).to(sources[0].dtype)


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute what the class computes for itself: the rotary speeds, which a model on the meta device has not."""
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            build: Any = type(module)
            made: nn.Module = build(module.config)
            for name, buffer in made.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
