"""The conversion record, `mha2gqa.json`: what was done, to what, by which versions, with what result.

`verify` holds a converted checkpoint against it; a directory that has one was made by this tool. `record_of` and
`extended` say what is written (`files/finish.py` writes it), `read_record` reads it back, and takes nothing in it on
trust.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import OutputTensor
from mha2gqa.files.reader import RECORD, read_json
from mha2gqa.files.source import Source
from mha2gqa.record.conversion import Conversion, parse_conversion
from mha2gqa.targets import recorded_target
from mha2gqa.targets.target import Target

FORMAT = 1
"""Version of the record's own form."""

_PACKAGES = ("mha2gqa", "torch", "transformers", "safetensors", "huggingface_hub")
_TRAINERS = ("mha2gqa", "torch", "transformers", "accelerate", "datasets")


@dataclass(frozen=True)
class WrittenTensor:
    """What the record says of one tensor of the result."""

    changed: bool
    """Whether it is not the original's, byte for byte."""
    checksum: str
    """XXH3-128 of its bytes, in hexadecimal."""


@dataclass(frozen=True)
class Record:
    """A record that was read back."""

    conversion: Conversion
    source_path: str | None
    """Where the original was; None when it came from the Hub."""
    hub_id: str | None
    revision: str | None
    versions: Mapping[str, str]
    tensors: Mapping[str, WrittenTensor]

    @property
    def target(self) -> Target:
        """What attention became, to be planned again."""
        return recorded_target(self.conversion.targets, self.conversion.options)


def record_of(
    conversion: Conversion, source: Source, tensors: Iterable[OutputTensor], checksums: Mapping[str, str]
) -> dict[str, Any]:
    """Return the record of a conversion.

    Args:
        conversion: What was done.
        source: What it was done to.
        tensors: The tensors of the result.
        checksums: Tensor name -> XXH3-128 of its bytes, in hexadecimal.
    """
    return {
        "format": FORMAT,
        "source": {
            "path": None if source.hub_id else str(source.directory.resolve()),
            "hub_id": source.hub_id,
            "revision": source.revision,
        },
        **conversion.recorded(),
        "versions": _versions(*_PACKAGES),
        "tensors": {
            tensor.name: {"changed": not tensor.is_copy, "xxh3_128": checksums[tensor.name]} for tensor in tensors
        },
    }


def extended(
    converted: Path, entry: Mapping[str, Any], tensors: Iterable[OutputTensor], checksums: Mapping[str, str]
) -> dict[str, Any]:
    """Return the record of a converted checkpoint that was trained: the same, and what the training did.

    Args:
        converted: Where the record of the conversion is.
        entry: Of the training.
        tensors: The tensors of the result, made of the converted ones.
        checksums: Tensor name -> XXH3-128 of its bytes, in hexadecimal.
    """
    content = read_json(converted / RECORD)
    content["uptrain"] = [*content.get("uptrain", []), dict(entry) | {"versions": _versions(*_TRAINERS)}]
    for tensor in tensors:
        changed = content["tensors"][tensor.name]["changed"] or not tensor.is_copy
        content["tensors"][tensor.name] = {"changed": changed, "xxh3_128": checksums[tensor.name]}
    return content


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def read_record(directory: Path) -> Record:
    """Read the record of a converted checkpoint.

    Raises:
        CheckpointError: There is none, or it is not one that this version writes.
    """
    if not (directory / RECORD).is_file():
        raise CheckpointError(
            f"There is no {RECORD} in {directory}",
            expected="a checkpoint that mha2gqa has written",
            remedy="Name the output of `mha2gqa convert` or `mha2gqa expand`",
        )
    content = read_json(directory / RECORD)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{directory / RECORD} is not a record of this version ({type(error).__name__}: {error})",
            expected=f"format {FORMAT}, as mha2gqa {version('mha2gqa')} writes it",
            remedy="Convert again, or verify with the version that converted",
        ) from error


def _parse(content: dict[str, Any]) -> Record:
    tensors = {
        name: WrittenTensor(bool(entry["changed"]), str(entry["xxh3_128"]))
        for name, entry in content["tensors"].items()
    }
    source = content["source"]
    conversion = parse_conversion(content)
    recorded_target(conversion.targets, conversion.options)  # unreadable ones are refused here
    return Record(conversion, source["path"], source["hub_id"], source["revision"], dict(content["versions"]), tensors)
