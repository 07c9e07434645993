"""The conversion record, `mha2gqa.json`: what was done, to what, by which versions, with what result.

`verify` holds a converted checkpoint against it; a directory that has one was made by this tool.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mha2gqa.checkpoint.pieces import OutputTensor
from mha2gqa.checkpoint.reader import RECORD
from mha2gqa.checkpoint.source import Source
from mha2gqa.grouping import Groups

FORMAT = 1
"""Version of the record's own form."""

_PACKAGES = ("mha2gqa", "torch", "transformers", "safetensors", "huggingface_hub")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of `mha2gqa.json`."""

    command: str
    """`convert` or `expand`."""
    options: Mapping[str, Any]
    """The options of the command that change the result."""
    model_type: str
    source_heads: int
    target_heads: int
    config_changes: list[dict[str, Any]]
    """Path, value before and value after of each config key."""
    groups: Mapping[str, Groups]
    """Attention module -> source heads of each KV head of the result."""
    dropped: tuple[str, ...]
    """Source tensors that the result does not have."""


def write_record(
    directory: Path, record: Record, source: Source, tensors: tuple[OutputTensor, ...], checksums: Mapping[str, str]
) -> None:
    """Write the record of a conversion.

    Args:
        directory: Where to write it.
        record: What was done.
        source: What it was done to.
        tensors: The tensors of the result.
        checksums: Tensor name -> XXH3-128 of its bytes, in hexadecimal.
    """
    content = {
        "format": FORMAT,
        "source": {
            "path": None if source.hub_id else str(source.directory.resolve()),
            "hub_id": source.hub_id,
            "revision": source.revision,
        },
        **asdict(record),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "tensors": {
            tensor.name: {"changed": not tensor.is_copy, "xxh3_128": checksums[tensor.name]} for tensor in tensors
        },
    }
    (directory / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
