"""Tiny random models of every transformers model type that has KV heads.

`tiny_config` walks a config class, takes every field it knows from `GENERIC` and then the family's own row of
`OVERRIDES` (both in `tiny_overrides.py`): 4 query heads, 4 KV heads, width 64, head width 16, 2 to 4 layers, vocabulary
128. `tiny_model` fills a model of it with random weights, norms and biases included, so that no tensor can be lost or
swapped without a change in the logits. `save_tiny` writes it as `save_pretrained` does.

Nothing here knows about conversion.
"""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .tiny_overrides import AT_MOST, CLASSES, GENERIC, OFF_BY_DEFAULT, OMIT, OVERRIDES, TOKEN_IDS

Fields = dict[str, Any]

_MAPPINGS: tuple[Mapping[str, Any], ...] = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
_STATE_SPACE_LEAVES = frozenset({"A_log", "D", "dt_bias", "rg_lru", "recurrent_param"})


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """Config of `model_type`; an override that is a dict is merged into the sub-config of that name."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_merged(_tiny_fields(config_class, model_type), overrides))


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Model of `config` in evaluation mode, every weight random."""
    torch.manual_seed(seed)
    model = getattr(transformers, model_class_name(config.model_type))(copy.deepcopy(config))
    _randomize(model, seed)
    return model.eval()


def save_tiny(
    model_type: str, directory: Path, *, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """Write a tiny checkpoint of `model_type` to `directory` and return its model."""
    model = tiny_model(tiny_config(model_type, **overrides)).to(dtype)
    model.save_pretrained(directory)
    return model


def model_class_name(model_type: str) -> str:
    """Name of the class whose checkpoints of `model_type` the tests use."""
    if model_type in CLASSES:
        return CLASSES[model_type]
    names = next(mapping[model_type] for mapping in _MAPPINGS if model_type in mapping)
    return names if isinstance(names, str) else names[0]


def _tiny_fields(config_class: type[PreTrainedConfig], model_type: str) -> Fields:
    """Constructor arguments of `config_class`, sub-configs as nested dicts."""
    own = OVERRIDES.get(config_class.model_type or model_type, {})
    fields = _generic_fields(config_class)
    for name, (sub_class, sub_type) in _sub_configs(config_class).items():
        fields[name] = _tiny_fields(sub_class, sub_type) | ({"model_type": sub_type} if sub_type else {})
    return copy.deepcopy({name: value for name, value in _merged(fields, own).items() if value is not OMIT})


def _generic_fields(config_class: type[PreTrainedConfig]) -> Fields:
    defaults = {field.name: _default(field) for field in dataclasses.fields(config_class)}
    fields: Fields = {}
    for name, default in defaults.items():
        if name in GENERIC and not isinstance(default, (bool, list, tuple)):
            if default is not None or name not in OFF_BY_DEFAULT:
                at_most = name in AT_MOST and default is not None
                fields[name] = min(default, GENERIC[name]) if at_most else GENERIC[name]
        elif name.endswith(("_id", "_index")) and type(default) is int and default >= 100:
            fields[name] = 100 + sum(map(ord, name)) % 27
    fields |= {name: value for name, value in TOKEN_IDS.items() if name in defaults}
    if "layer_types" in defaults and "num_hidden_layers" in defaults:
        fields["num_hidden_layers"] = 4
    return fields


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _sub_configs(config_class: type[PreTrainedConfig]) -> dict[str, tuple[type[PreTrainedConfig], str]]:
    """Sub-config classes by field name; the model type is empty where the class is fixed by the field."""
    subs = {}
    for name, spec in (config_class.sub_configs_defaults or {}).items():
        fixed = spec.config_class
        if isinstance(getattr(fixed, "model_type", None), str) and issubclass(fixed, PreTrainedConfig):
            subs[name] = (fixed, "")
        elif spec.model_type in CONFIG_MAPPING:
            subs[name] = (CONFIG_MAPPING[spec.model_type], spec.model_type)
    return subs


def _merged(fields: Fields, overrides: Mapping[str, Any]) -> Fields:
    merged = dict(fields)
    for name, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(fields.get(name), dict)
        merged[name] = _merged(fields[name], value) if nested else value
    return merged


@torch.no_grad()
def _randomize(model: PreTrainedModel, seed: int) -> None:
    """Matrices N(0, 0.15); norms and biases keep their start and get noise; state-space parameters stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if not parameter.is_floating_point() or leaf in _STATE_SPACE_LEAVES or "rg_lru" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if parameter.dim() >= 2:
            parameter.copy_(noise * 0.15)
        else:
            parameter.add_(noise * (0.1 if leaf == "bias" and "norm" in name.lower() else 0.2))
