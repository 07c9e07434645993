"""What transformers expects on disk for a config: names and shapes, without weights.

The difference between the blueprints of two configs is the list of tensors that a change of config touches; that the
result will load strictly is then known before a byte is written.

    expected.py    the form of the answer, and how a file may spell it
    outlines.py    answers for common families from data that was made by asking, without torch; what the data does not
                   cover with certainty it leaves to
    built.py       which asks transformers: right for every config, and takes seconds
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from mha2gqa.families.expected import Blueprint, ConfigJson, Shape, Spelling, by_module, find_spelling, fit
from mha2gqa.families.outlines import data_of, outlined

__all__ = [
    "Blueprint",
    "ConfigJson",
    "Shape",
    "Spelling",
    "asking",
    "blueprint",
    "by_module",
    "find_spelling",
    "fit",
    "said_of",
]

_only_asked: ContextVar[bool] = ContextVar("only_asked", default=False)

_KERNEL = re.compile(r"_?(attn|experts)_implementation(_internal|_autoset)?")
"""Keys that name the kernel to compute something with; transformers fetches code from the Hub for some."""
_EVERYWHERE = ("eager", "sdpa")
"""Kernels that need nothing but torch."""


def blueprint(config_json: ConfigJson) -> Blueprint:
    """Return the blueprint of a `config.json`.

    Raises:
        CheckpointError: The config is malformed, or transformers rejects its values.
        FamilyError: transformers does not know the model type.
    """
    return _find(json.dumps(_without_kernels(config_json), sort_keys=True), _only_asked.get())


def said_of(model_type: str, key: str) -> Any:
    """Return what the data says of a model type besides its tensors; None where transformers has to be asked."""
    data = None if _only_asked.get() else data_of(model_type)
    return None if data is None else data.get(key)


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Ask transformers for every blueprint while the block runs: who verifies takes nobody else's word."""
    token = _only_asked.set(True)
    try:
        yield
    finally:
        _only_asked.reset(token)


def _without_kernels(content: Any) -> Any:
    """Return a config without the kernels that it names: here nothing is computed, and elsewhere torch's will do."""
    if not isinstance(content, dict):
        return content
    names = ((key, value) for key, value in content.items() if not _KERNEL.fullmatch(str(key)) or value in _EVERYWHERE)
    return {key: _without_kernels(value) for key, value in names}


@functools.lru_cache(maxsize=4)
def _find(config_text: str, only_asked: bool) -> Blueprint:
    build = functools.partial(_build, config_text)
    found = None if only_asked else outlined(json.loads(config_text), build)
    return found or build()


def _build(config_text: str) -> Blueprint:
    from mha2gqa.families.built import build  # torch and transformers come with it

    return build(config_text)
