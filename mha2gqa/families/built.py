"""Asks transformers what it expects on disk for a config, by building its class on the meta device.

Right for every config, and the judge of everything that says the same without asking (`outlines.py`). Building takes a
second or less, importing torch and transformers several.

This file knows nothing about families; it never reads a tensor.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings, revert_weight_conversion
from transformers.initialization import no_init_weights
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from mha2gqa import shipped
from mha2gqa.errors import CheckpointError, FamilyError, Mha2GqaError, OutputError
from mha2gqa.families.expected import Attention, Blueprint, ConfigJson, Parameter, Shape
from mha2gqa.families.limits import REMEDIES, SHIPPED, check_counts

Built = TypeVar("Built")

_LONGEST_TYPE = 80
"""Characters of a model type that are looked at where it is unknown."""


class Asked(Blueprint):
    """What transformers' own class says."""

    def __init__(self, model: PreTrainedModel, config: PreTrainedConfig, shapes: Mapping[str, Shape]) -> None:
        self._model, self._config = model, config
        self.architecture, self.prefix = type(model).__name__, model.base_model_prefix
        self.is_base = model.base_model is model
        self.final_norm = next((type(one).__name__ for name, one in model.named_modules() if name == "model.norm"), "")
        self.is_like_llama = False  # layers tell, where it is asked
        self.settings = config
        self.shapes, self.module_shapes = shapes, _shapes(model.state_dict())

    @property
    def config(self) -> PreTrainedConfig:
        """The config as transformers reads it."""
        return self._config

    @property
    def model(self) -> PreTrainedModel:
        """The model on the meta device: modules and shapes, no memory."""
        return self._model

    @functools.cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Name in the module tree -> what is trained; what is tied counts once."""
        return dict(self._parameters())

    def _parameters(self) -> Iterator[tuple[str, Parameter]]:
        modules, head = dict(self._model.named_modules()), self._model.get_output_embeddings()
        attention = {name for name, module in modules.items() if type(module).__name__.endswith("Attention")}
        for name, parameter in self._model.named_parameters():
            path = name.split(".")
            owner = self._model.get_submodule(".".join(path[:-1]))
            kind: Any = ""
            if "norm" in type(owner).__name__.lower():
                kind = "norm"
            elif isinstance(owner, nn.Embedding) or owner is head:
                kind = "embedding"
            elif any(".".join(path[:length]) in attention for length in range(1, len(path))):
                kind = "attention"
            yield name, Parameter(tuple(parameter.shape), kind)

    def attention(self, module: str) -> Attention:
        """Return what a module says of its attention, by its path in the module tree."""
        owner: Any = self._model.get_submodule(module)
        return Attention(
            layer=getattr(owner, "layer_idx", None),
            shares=bool(getattr(owner, "is_kv_shared_layer", False)),
            keys_are_values=getattr(owner, "v_proj", owner) is None,
        )

    def filed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors of the module tree under the names, and in the form, that `save_pretrained` writes."""
        filed: dict[str, torch.Tensor] = revert_weight_conversion(self._model, dict(tensors))
        return filed

    def filed_names(self) -> Mapping[str, str]:
        """Return the name in such a file of each tensor of the module tree that has one of its own there."""
        state = {name: torch.empty(shape, device="meta") for name, shape in self.module_shapes.items()}
        names = {id(tensor): name for name, tensor in state.items()}
        return {names[id(tensor)]: name for name, tensor in self.filed(state).items() if id(tensor) in names}

    def modern(self, names: AbstractSet[str]) -> Mapping[str, str]:
        """Return the names that transformers takes those of former versions for."""
        renamings = [one for one in get_model_conversion_mapping(self._model) if type(one) is WeightRenaming]
        return {name: apply_renamings(name, renamings) for name in names}


@functools.lru_cache(maxsize=4)
def build(config_text: str) -> Asked:
    """Build the class of a config.json.

    Raises:
        CheckpointError: The config is malformed, or transformers rejects its values.
        FamilyError: transformers does not know the model type.
    """
    config_json = json.loads(config_text)
    model_type = config_json.get("model_type")
    _require_known(model_type, config_json)
    config = _accept(model_type, lambda: _read_config(config_text))
    build = _model_class(config, config_json)
    with torch.device("meta"), no_init_weights():  # there is nothing to fill, and to find that out takes a fifth
        model = _accept(model_type, lambda: build(config))
    model.tie_weights()
    state = model.state_dict()
    unsaved = model._keys_to_ignore_on_save or ()  # tables that the class computes
    saved = remove_tied_weights_from_state_dict({name: state[name] for name in state if name not in unsaved}, model)
    return Asked(model, config, _shapes(revert_weight_conversion(model, saved)))


def _accept(model_type: str, build: Callable[[], Built]) -> Built:
    try:
        return build()
    except Mha2GqaError:
        raise
    except Exception as error:  # transformers validates with exceptions of every kind, some over several lines
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"transformers {transformers.__version__} rejects this config.json of type {model_type!r}: {reason}",
            expected="a config that AutoConfig.from_pretrained and its model class accept",
        ) from error


def _read_config(config_text: str) -> PreTrainedConfig:
    """Read a config as from_pretrained does, with everything that it decodes on the way."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.json"
        try:
            path.write_text(config_text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"Writing {path} failed: {error.strerror}", remedy="Free some space there") from error
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return config


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_known(model_type: object, config_json: ConfigJson) -> None:
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"config.json has model_type {model_type!r}",
            expected="the name of a transformers model type, such as 'llama'",
            remedy="Add the key, or save the model again with a current transformers",
        )
    check_counts(config_json)
    if shipped.register(model_type) or model_type in CONFIG_MAPPING:
        return
    raise FamilyError(
        f"Model type {model_type[:_LONGEST_TYPE]!r} is unknown to transformers {transformers.__version__}"
        + ". Its code ships with the checkpoint (auto_map), which mha2gqa does not run" * ("auto_map" in config_json),
        remedy=_unknown_remedy(model_type, config_json),
    )


def _unknown_remedy(model_type: str, config_json: ConfigJson) -> str:
    if model_type in REMEDIES:
        return REMEDIES[model_type]
    if "auto_map" in config_json:
        return SHIPPED
    close = get_close_matches(model_type[:_LONGEST_TYPE], list(CONFIG_MAPPING.keys()), n=3)
    return f"Did you mean {', '.join(close)}?" if close else "A newer transformers may know it"


def _model_class(config: PreTrainedConfig, config_json: ConfigJson) -> Callable[[PreTrainedConfig], PreTrainedModel]:
    """Return the class that wrote the checkpoint, else the causal or the bare model of the type."""
    architectures = config_json.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"config.json has architectures {architectures!r}", expected="a list of class names")
    names = [*architectures, *_auto_classes(config.model_type)]
    for name in names:
        candidate = shipped.find_class(config.model_type, name) or getattr(transformers, name, None)
        if isinstance(candidate, type) and issubclass(candidate, PreTrainedModel):
            return _fit_config(candidate)
    raise FamilyError(
        f"transformers has no model class for type {config.model_type!r}",
        expected=f"one of the architectures {names}",
    )


def _auto_classes(model_type: str) -> list[str]:
    mappings: list[Mapping[str, Any]] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES]
    found = [mapping[model_type] for mapping in mappings if model_type in mapping]
    return [name for entry in found for name in ([entry] if isinstance(entry, str) else entry)]


def _fit_config(model_class: type[PreTrainedModel]) -> Callable[[PreTrainedConfig], PreTrainedModel]:
    """Hand a text-only class the text part of a composite config, as from_pretrained does."""

    def build(config: PreTrainedConfig) -> PreTrainedModel:
        wanted = getattr(model_class, "config_class", None)
        if wanted is None or isinstance(config, wanted):
            return model_class(config)
        text = config.get_text_config(decoder=True)
        return model_class(text if isinstance(text, wanted) else config)

    return build
