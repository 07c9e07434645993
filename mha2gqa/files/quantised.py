"""Quantised weights: what a config says of them, whether the tensors bear it out, and which ones cannot be changed.

A conversion changes a few tensors and copies the others as bytes. Where those few are plain (gpt-oss quantises its
experts alone), a quantised checkpoint is as good as any other. Where no tensor is quantised at all, the config speaks
of a time before they were made plain again, and would mislead whoever loads them: `without_stale` takes its words away.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import ITEMSIZES, TensorInfo

_KEYS = ("quantization_config", "compression_config", "quantization")
_PLAIN = frozenset((*ITEMSIZES, "I64", "BOOL"))
"""Dtypes of weights and of buffers; quantised weights are packed in narrower whole numbers, or in FP8."""
_BESIDE = re.compile(r".*(scale|zero|absmax|quant|qweight|packed|g_idx|scb).*", re.IGNORECASE)
"""What lies beside a weight that is quantised, in the module of the same projection."""


def quantisation(config: Mapping[str, Any]) -> str | None:
    """Return how a config says that the weights are quantised; None where it does not."""
    for holder in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _KEYS:
            if said := holder.get(key):
                return str(said.get("quant_method", key) if isinstance(said, dict) else said)
    return None


def without_stale(config: dict[str, Any], tensors: Iterable[TensorInfo]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a config without what it says of quantisation, and which keys those are, where no tensor is quantised."""
    if quantisation(config) is None or any(map(_is_packed, tensors)):
        return config, ()
    kept: dict[str, Any] = {}
    stale: list[str] = []
    for key, value in config.items():
        if key in _KEYS:
            stale.append(key)
        elif isinstance(value, dict):
            stale += [f"{key}.{inner}" for inner in value if inner in _KEYS]
            kept[key] = {inner: held for inner, held in value.items() if inner not in _KEYS}
        else:
            kept[key] = value
    return kept, tuple(stale)


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Refuse quantised weights where all of them are needed in numbers.

    Raises:
        CheckpointError: The config says that they are.
    """
    if kind := quantisation(config):
        raise CheckpointError(
            f"The checkpoint is quantised ({kind})",
            expected="weights in fp64, fp32, bf16 or fp16",
            remedy="Convert the unquantised checkpoint, then quantise the result",
        )


def refuse_packed(config: Mapping[str, Any], tensors: Sequence[TensorInfo], changed: Iterable[str]) -> None:
    """Refuse to change tensors that are quantised, in a checkpoint whose config says that some are.

    Args:
        config: The config.
        tensors: All tensors of the file.
        changed: Names of those that would be changed, as a file has them that is not quantised.

    Raises:
        CheckpointError: One is; the message names it.
    """
    if (kind := quantisation(config)) is None:
        return
    packed: dict[str, TensorInfo] = {}
    for info in tensors:
        owner, _, leaf = info.name.rpartition(".")
        if _is_packed(info) or _BESIDE.fullmatch(leaf):
            packed.setdefault(owner, info)
    for name in changed:
        if (found := packed.get(name.rpartition(".")[0])) is not None:
            raise CheckpointError(
                f"Tensor {found.name!r} ({found.dtype}) is quantised ({kind}), and this conversion would change it",
                expected=f"attention weights in one of {', '.join(ITEMSIZES)}; others may be quantised",
                remedy="Convert the unquantised checkpoint, then quantise the result",
            )


def _is_packed(info: TensorInfo) -> bool:
    return info.dtype not in _PLAIN
