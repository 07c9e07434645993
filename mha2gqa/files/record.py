"""The conversion record, `mha2gqa.json`: what was done, to what, by which versions, with what result.

`verify` holds a converted checkpoint against it; a directory that has one was made by this tool.
`write_record` writes one, `read_record` reads it back, and takes nothing in it on trust.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import OutputTensor
from mha2gqa.files.plain import made_visible
from mha2gqa.files.reader import RECORD, read_json
from mha2gqa.files.source import Source
from mha2gqa.heads.grouping import Groups

FORMAT = 1
"""Version of the record's own form."""

_PACKAGES = ("mha2gqa", "torch", "transformers", "safetensors", "huggingface_hub")
_TRAINERS = ("mha2gqa", "torch", "transformers", "accelerate", "datasets")


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
    text: str | None = None
    """Where calibration text came from."""
    layers: list[Mapping[str, Any]] = field(default_factory=list)
    """What a layer method did to each attention module, by its name in the module tree."""
    trials: list[Mapping[str, Any]] = field(default_factory=list)
    """What `--method auto` tried; the one with the least loss is the result."""
    uptrain: list[Mapping[str, Any]] = field(default_factory=list)
    """Each training that followed: what it was and what it won."""
    divergence: tuple[float, float] | None = None
    """From the original in nats a token on text kept aside, before and after `joint` trained all layers together."""
    rehosted_from: str | None = None
    """Model type of the source, where the result is of another: its own class knows only multi-head attention."""

    @property
    def wanted(self) -> int | Mapping[str, int]:
        """G as it was asked for: one number, or one for each kind of attention."""
        groups = self.options.get("groups")
        return groups if isinstance(groups, Mapping) else self.target_heads

    @property
    def refinement(self) -> str | None:
        """How layers were improved on text: as asked for, or as `auto` chose."""
        tried = min(self.trials, key=lambda trial: trial["loss"], default=None)
        refine: str | None = self.options.get("refine") if tried is None else tried["refine"]
        return refine

    @property
    def way(self) -> str | None:
        """The method and, where layers were improved on text, how: `aligned, distil`; None where nothing was merged."""
        method = "auto: aligned" if self.trials else self.options.get("method")
        return ", ".join(filter(None, (method, self.refinement))) or None

    @property
    def was_trained(self) -> bool:
        """Whether the converted attention was trained already, by a refinement or by `uptrain`."""
        return bool(self.uptrain) or self.refinement in ("distil", "joint")


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
        "versions": _versions(*_PACKAGES),
        "tensors": {
            tensor.name: {"changed": not tensor.is_copy, "xxh3_128": checksums[tensor.name]} for tensor in tensors
        },
    }
    (directory / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def extend_record(
    converted: Path,
    directory: Path,
    entry: Mapping[str, Any],
    tensors: tuple[OutputTensor, ...],
    checksums: Mapping[str, str],
) -> None:
    """Write the record of a converted checkpoint that was trained: the same, and what the training did.

    Args:
        converted: Where the record of the conversion is.
        directory: Where to write.
        entry: Of the training.
        tensors: The tensors of the result, made of the converted ones.
        checksums: Tensor name -> XXH3-128 of its bytes, in hexadecimal.
    """
    content = read_json(converted / RECORD)
    content["uptrain"] = [*content.get("uptrain", []), dict(entry) | {"versions": _versions(*_TRAINERS)}]
    for tensor in tensors:
        changed = content["tensors"][tensor.name]["changed"] or not tensor.is_copy
        content["tensors"][tensor.name] = {"changed": changed, "xxh3_128": checksums[tensor.name]}
    (directory / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


@dataclass(frozen=True)
class WrittenTensor:
    """What the record says of one tensor of the result."""

    changed: bool
    """Whether it is not the source's, byte for byte."""
    checksum: str
    """XXH3-128 of its bytes, in hexadecimal."""


@dataclass(frozen=True)
class WrittenRecord:
    """A record that was read back."""

    record: Record
    source_path: str | None
    """Where the source was; None when it came from the Hub."""
    hub_id: str | None
    revision: str | None
    versions: Mapping[str, str]
    tensors: Mapping[str, WrittenTensor]


def read_record(directory: Path) -> WrittenRecord:
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
    content = made_visible(read_json(directory / RECORD))  # its words are printed
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


def _parse_layer(content: dict[str, Any]) -> dict[str, Any]:
    errors = {str(step): float(error) for step, error in content["errors"].items()}
    return content | {"module": str(content["module"]), "errors": errors}


def _parse_trial(content: dict[str, Any]) -> dict[str, Any]:
    refine = None if content["refine"] is None else str(content["refine"])
    return content | {"refine": refine, "loss": float(content["loss"]), "increase": float(content["increase"])}


def _parse_divergence(content: list[Any] | None) -> tuple[float, float] | None:
    if content is None:
        return None
    before, after = map(float, content)
    return before, after


def _parse(content: dict[str, Any]) -> WrittenRecord:
    groups = {module: tuple(tuple(map(int, group)) for group in found) for module, found in content["groups"].items()}
    record = Record(
        command=str(content["command"]),
        options=dict(content["options"]),
        model_type=str(content["model_type"]),
        source_heads=int(content["source_heads"]),
        target_heads=int(content["target_heads"]),
        config_changes=[
            {"path": tuple(map(str, change["path"])), "before": change["before"], "after": change["after"]}
            for change in content["config_changes"]
        ],
        groups=groups,
        dropped=tuple(map(str, content["dropped"])),
        text=None if content.get("text") is None else str(content["text"]),
        layers=[_parse_layer(layer) for layer in content.get("layers", [])],
        trials=[_parse_trial(trial) for trial in content.get("trials", [])],
        uptrain=[dict(entry) for entry in content.get("uptrain", [])],
        divergence=_parse_divergence(content.get("divergence")),
        rehosted_from=None if content.get("rehosted_from") is None else str(content["rehosted_from"]),
    )
    tensors = {
        name: WrittenTensor(bool(entry["changed"]), str(entry["xxh3_128"]))
        for name, entry in content["tensors"].items()
    }
    source = content["source"]
    return WrittenRecord(
        record, source["path"], source["hub_id"], source["revision"], dict(content["versions"]), tensors
    )
