"""The converted model beside the original, in memory: every weight that a conversion leaves alone is shared.

So the pair costs little more than the original. A changed attention module starts empty and is filled with
`install`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mha2gqa.families.attention import AttentionLayer


def build_student(
    original: PreTrainedModel, config: PreTrainedConfig, layers: Sequence[AttentionLayer]
) -> PreTrainedModel:
    """Build the model of the rewritten config around the original's weights.

    Args:
        original: The original, loaded.
        config: The rewritten config.
        layers: The layers that change; what changes in them holds zeros until `install`.
    """
    build: Any = type(original)
    with torch.device("meta"):
        student: PreTrainedModel = build(_fitting(original, config))
    changed = {f"{layer.module}.{name}": layer.shapes[name] for layer in layers for name in layer.changed}
    wanted = student.state_dict().keys()
    tensors = {name: tensor for name, tensor in original.state_dict().items() if name in wanted}
    # By place in memory: where layers share weights (zamba), what replaces them is shared as well.
    fresh = {tensors[name].data_ptr(): tensors[name].new_zeros(shape) for name, shape in changed.items()}
    student.load_state_dict({name: fresh.get(one.data_ptr(), one) for name, one in tensors.items()}, assign=True)
    for name, buffer in original.named_buffers():
        owner, _, leaf = name.rpartition(".")
        student.get_submodule(owner)._buffers[leaf] = buffer
    _fill(student, original.device)
    if student.config._attn_implementation != original.config._attn_implementation:
        student.set_attn_implementation(original.config._attn_implementation)
    student.requires_grad_(requires_grad=False).eval()
    return student


def _fill(student: PreTrainedModel, device: torch.device) -> None:
    """Let the class compute buffers that the original has none of: speeds of a kind of layers that it has not."""
    for module in student.modules():
        absent = {name: one for name, one in module.named_buffers(recurse=False) if one.is_meta}
        module._buffers.update({name: torch.empty_like(one, device=device) for name, one in absent.items()})
        if absent:
            student._init_weights(module)


def own_tensors(model: PreTrainedModel, layer: AttentionLayer) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer's module, without the module's own name."""
    module = model.get_submodule(layer.module)
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@torch.no_grad()
def install(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into a module's parameters of these names."""
    for name, tensor in tensors.items():
        module.get_parameter(name).copy_(tensor)


def _fitting(original: PreTrainedModel, config: Any) -> Any:
    """Return the config that the original's class takes: the text part, where the file holds a composite."""
    wanted = type(original.config)
    return config if isinstance(config, wanted) else config.get_text_config(decoder=True)
