"""What trains: the converted attention modules, everything, only what holds keys and values, or an adapter (peft).

Freezes the rest of the model, so that the optimiser has state only for what trains. Which modules are attention is
what `Architecture.attention_modules` says; those whose keys and values a conversion has left alone do not train.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.errors import TrainingError
from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.model.architecture import Architecture
from mha2gqa.verbs.uptrain.options import Trained


def select_parameters(
    model: PreTrainedModel,
    architecture: Architecture,
    record_changes: list[dict[str, Any]],
    train: Trained,
    lora_rank: int,
) -> nn.Module:
    """Freeze what does not train.

    Args:
        model: The converted model.
        architecture: What its config says.
        record_changes: The record's changes of config.json, which tell what the conversion touched.
        train: What trains.
        lora_rank: Rank of an adapter.

    Returns:
        The model, or with `lora` the model with an adapter.

    Raises:
        TrainingError: There is nothing that trains.
    """
    if train == "all":
        return model.requires_grad_(requires_grad=True)
    converted = _keys_and_values(architecture, record_changes)
    modules = architecture.attention_modules
    modules = [one for one in modules if any(name.startswith(f"{one}.") for name in converted)] or modules
    model.requires_grad_(requires_grad=False)
    if train == "lora":
        return _with_adapter(model, modules, lora_rank)
    inside = {f"{one}.{name}" for one in modules for name, _ in model.get_submodule(one).named_parameters()}
    names = inside if train == "attention" else converted
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in names and parameter.is_floating_point():
            parameter.requires_grad = True
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            f"--train {train} finds nothing to train in this {model.config.model_type!r} model",
            expected="tensors that a conversion has changed" if train == "kv" else "attention modules",
            remedy="Use --train all",
        )
    return model


def _keys_and_values(model: Architecture, changes: list[dict[str, Any]]) -> set[str]:
    """Return the parameters whose shapes the conversion changed; fused with queries, they train as a whole."""
    original = Architecture(_undone(model.config_json, changes))
    before, after = (one.blueprint.module_shapes for one in (original, model))
    return {name for name, shape in after.items() if before.get(name) != shape}


def _undone(config: ConfigJson, changes: list[dict[str, Any]]) -> ConfigJson:
    original = copy.deepcopy(config)
    for change in changes:
        holder: dict[str, Any] = original
        for key in change["path"][:-1]:
            holder = holder.setdefault(key, {})
        holder[change["path"][-1]] = change["before"]
        if change["before"] is None:
            del holder[change["path"][-1]]
    return original


def _with_adapter(model: PreTrainedModel, modules: list[str], rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model  # half a second, and few need it

    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted(name for name in linear if any(name.startswith(f"{module}.") for module in modules))
    if not targets:
        raise TrainingError(
            f"The attention of this {model.config.model_type!r} model has no linear layer for an adapter",
            remedy="Use --train attention",
        )
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
    adapted: nn.Module = get_peft_model(model, adapter)
    return adapted


def count_parameters(model: nn.Module) -> Mapping[str, int]:
    """Return how many parameters train, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"trained": sum(size for size, trains in sizes if trains), "all": sum(size for size, _ in sizes)}


def merge_adapter(model: PreTrainedModel, directory: Any) -> PreTrainedModel:
    """Return the model with a saved adapter merged into its weights."""
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(model, directory)
    with torch.no_grad():
        merged: PreTrainedModel = adapted.merge_and_unload()
    return merged
