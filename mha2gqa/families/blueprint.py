"""What transformers itself expects on disk for a config: names and shapes, without weights.

`blueprint(config_json)` builds the model class on the meta device. The difference between the
blueprints of two configs is the list of tensors that a change of config touches; that the result
will load strictly is then known before a byte is written.

A file may name its tensors as transformers writes them (`shapes`), as the module tree does (`module_shapes`), either
with or without the base model's prefix, and partly as former versions did, which transformers renames when it loads
(`LayerNorm.gamma`); `find_spelling` tells which.

This file knows nothing about families; it never reads a tensor.
"""

import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings, revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from mha2gqa import shipped
from mha2gqa.errors import CheckpointError, FamilyError, Mha2GqaError, OutputError
from mha2gqa.families.limits import REMEDIES, SHIPPED, check_counts

Shape: TypeAlias = tuple[int, ...]
ConfigJson: TypeAlias = dict[str, Any]
Built = TypeVar("Built")

_LONGEST_TYPE = 80
"""Characters of a model type that are looked at where it is unknown."""
_KERNEL = re.compile(r"_?(attn|experts)_implementation(_internal|_autoset)?")
"""Keys that name the kernel to compute something with; transformers fetches code from the Hub for some."""
_EVERYWHERE = ("eager", "sdpa")
"""Kernels that need nothing but torch."""


@dataclass(frozen=True)
class Blueprint:
    """The expected tensors of one config."""

    config: PreTrainedConfig
    model: PreTrainedModel
    """The model on the meta device: modules and shapes, no memory."""
    shapes: Mapping[str, Shape]
    """Name in a file that `save_pretrained` writes -> shape."""
    module_shapes: Mapping[str, Shape]
    """Name in the module tree -> shape."""


def blueprint(config_json: ConfigJson) -> Blueprint:
    """Build the blueprint of a `config.json`.

    Raises:
        CheckpointError: The config is malformed, or transformers rejects its values.
        FamilyError: transformers does not know the model type.
    """
    return _build(json.dumps(_without_kernels(config_json), sort_keys=True))


def _without_kernels(content: Any) -> Any:
    """Return a config without the kernels that it names: here nothing is computed, and elsewhere torch's will do."""
    if not isinstance(content, dict):
        return content
    names = ((key, value) for key, value in content.items() if not _KERNEL.fullmatch(str(key)) or value in _EVERYWHERE)
    return {key: _without_kernels(value) for key, value in names}


@functools.lru_cache(maxsize=4)
def _build(config_text: str) -> Blueprint:
    config_json = json.loads(config_text)
    model_type = config_json.get("model_type")
    _require_known(model_type, config_json)
    config = _accept(model_type, lambda: _read_config(config_text))
    build = _model_class(config, config_json)
    with torch.device("meta"):
        model = _accept(model_type, lambda: build(config))
    state = model.state_dict()
    unsaved = model._keys_to_ignore_on_save or ()  # tables that the class computes
    saved = remove_tied_weights_from_state_dict({name: state[name] for name in state if name not in unsaved}, model)
    return Blueprint(config, model, _shapes(revert_weight_conversion(model, saved)), _shapes(state))


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


@dataclass(frozen=True)
class Spelling:
    """A way to name tensors in a file; calling it with a blueprint gives file name -> shape."""

    attribute: Literal["shapes", "module_shapes"]
    """As transformers writes them, or as in the module tree."""
    prefix: str = ""
    """The base model's prefix, where the file has it and transformers' names have not, or the reverse."""
    adds: bool = False
    """The file has the prefix."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Names that would be there so far, and the former ones that the file has in their place."""

    def __call__(self, plan: Blueprint) -> dict[str, Shape]:
        """Return the names and shapes of a blueprint in this spelling."""
        return {self._change(name): shape for name, shape in getattr(plan, self.attribute).items()}

    def write(self, plan: Blueprint, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors of the module tree under the names, and in the form, that a file has them in."""
        written = dict(tensors)
        if self.attribute == "shapes":
            written = revert_weight_conversion(plan.model, written)
        return {self._change(name): tensor for name, tensor in written.items()}

    @functools.cached_property
    def _former(self) -> Mapping[str, str]:
        return dict(self.renamed)

    def _change(self, name: str) -> str:
        known = self.prefix + name if self.adds else name.removeprefix(self.prefix)
        return self._former.get(known, known)


by_module = Spelling("module_shapes")
"""Names as in the module tree."""


def find_spelling(plan: Blueprint, names: AbstractSet[str]) -> Spelling:
    """Return the spelling of tensor names that fits the most of `names`, the names in a file."""
    prefix = f"{plan.model.base_model_prefix}."
    attributes: tuple[Literal["shapes", "module_shapes"], ...] = ("shapes", "module_shapes")
    spellings = [
        spelling
        for attribute in attributes
        for spelling in (Spelling(attribute), Spelling(attribute, prefix), Spelling(attribute, prefix, adds=True))
    ]
    best = max(spellings, key=lambda spelling: fit(plan, spelling, names))
    if best(plan).keys() <= names:
        return best
    renamings = [one for one in get_model_conversion_mapping(plan.model) if type(one) is WeightRenaming]
    former = [replace(one, renamed=tuple(_former(one(plan).keys(), names, renamings))) for one in spellings]
    return max((best, *former), key=lambda spelling: fit(plan, spelling, names))


def fit(plan: Blueprint, spelling: Spelling, names: AbstractSet[str]) -> int:
    """Return how many of `names`, the names in a file, are those of the model in a spelling."""
    return len(names & spelling(plan).keys())


def _former(
    expected: AbstractSet[str], names: AbstractSet[str], renamings: list[WeightRenaming]
) -> Iterator[tuple[str, str]]:
    """Yield what is expected and not in a file, and which name of the file transformers takes for it."""
    taken: set[str] = set()
    for name in sorted(names - expected):
        new = apply_renamings(name, renamings)
        if new in expected and new not in names and new not in taken:
            taken.add(new)
            yield new, name
