"""What transformers says, in a form that can be compared, and the classes that are asked."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.models.auto import modeling_auto

from mha2gqa import shipped
from mha2gqa.families.built import _accept, _read_config
from mha2gqa.families.expected import Blueprint, ConfigJson

ABSENT = object()
_AUTO = (
    *("FOR_CAUSAL_LM", "", "FOR_SEQ_TO_SEQ_CAUSAL_LM", "FOR_SPEECH_SEQ_2_SEQ", "FOR_MASKED_LM", "FOR_CTC"),
    *("FOR_IMAGE_CLASSIFICATION", "FOR_PRETRAINING", "FOR_TEXT_ENCODING"),
)
_OTHERS = ("FOR_SEQUENCE_CLASSIFICATION", "FOR_TOKEN_CLASSIFICATION", "FOR_QUESTION_ANSWERING")
"""Kinds of classes."""


def class_names(model_type: str) -> Iterator[str]:
    """Yield the names of the classes of a model type, the one first that is built where a config names none."""
    native = shipped.native(model_type)
    mapping = [_mapping(one) for one in _AUTO]
    if not any(native in _mapping(one) for one in ("FOR_CAUSAL_LM", "FOR_MASKED_LM")) or native in _mapping(
        "FOR_MASKED_LM"
    ):
        mapping += [_mapping(one) for one in _OTHERS]  # decoders are seldom anything else
    ours = shipped.architectures(model_type) if model_type in shipped.MODULES else None
    found = [names[native] for names in mapping if native in names]
    names = dict.fromkeys(name for one in found for name in ([one] if isinstance(one, str) else one))
    yield from names if ours is None else (ours[name] for name in names if name in ours)


def _mapping(name: str) -> Mapping[str, Any]:
    mapping: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_{name}_MAPPING_NAMES".replace("__", "_"))
    return mapping


def read_config(config: ConfigJson) -> Any:
    """Return a config as transformers reads it.

    Raises:
        CheckpointError: It rejects it.
    """
    return _accept(config["model_type"], lambda: _read_config(json.dumps(config)))


def facts(asked: Blueprint) -> Any:
    """Return all that a blueprint says."""
    modules = {name.rpartition(".")[0] for name in asked.module_shapes}
    attention = {name: asked.attention(name) for name in modules}
    said = asked.architecture, asked.prefix, asked.is_base, asked.final_norm, dict(asked.shapes)
    return *said, list(asked.module_shapes.items()), list(asked.parameters.items()), attention


def read(config: Any, key: str) -> Any:
    """Return what a config says, lists as JSON has them."""
    value = getattr(config, key, ABSENT)
    return list(value) if isinstance(value, tuple) else value


def same(one: Any, other: Any) -> bool:
    """Return whether values are equal, and of one type."""
    return type(one) is type(other) and bool(one == other)


def plain(value: Any) -> Any:
    """Return a value as JSON has it, if that says all of it."""
    if isinstance(value, list | tuple):
        return list(value) if all(plain(one) is not ABSENT for one in value) else ABSENT
    return value if value is None or isinstance(value, bool | int | float | str) else ABSENT
