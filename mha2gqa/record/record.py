"""The conversion record, `mha2gqa.json`: what was done, to what, by which versions, with what result.

`verify` holds a converted checkpoint against it; a directory that has one was made by this tool. `record_of` and
`extended` say what is written (`files/finish.py` writes it), `read_record` reads it back, and takes nothing in it on
trust. A checksum of every tensor of the original (`source_checksums`) ties a result to what it was made of, whatever
is done to it later.
"""

import contextlib
import functools
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pieces import Copy, File, OutputTensor, Span, TensorInfo
from mha2gqa.files.plain import made_visible
from mha2gqa.files.reader import RECORD, read_json
from mha2gqa.files.source import Source
from mha2gqa.files.streams import Sources
from mha2gqa.record.conversion import Conversion, parse_conversion
from mha2gqa.targets import recorded_target
from mha2gqa.targets.target import Target

FORMAT = 1
"""Version of the record's own form."""

_PACKAGES = ("mha2gqa", "torch", "transformers", "safetensors", "huggingface_hub")
_TRAINERS = ("mha2gqa", "torch", "transformers", "accelerate", "datasets")
_THREADS = 3
"""As many as the writer has."""
_BUFFER = 1 << 20
_Place: TypeAlias = tuple[Path | int, int, int]


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
    made_of: Mapping[str, str]
    """Tensor of the original's files -> XXH3-128 of its bytes; empty in records of versions that did not keep it."""

    @property
    def target(self) -> Target:
        """What attention became, to be planned again."""
        return recorded_target(self.conversion.targets, self.conversion.options)


def record_of(
    conversion: Conversion,
    source: Source,
    tensors: Iterable[OutputTensor],
    checksums: Mapping[str, str],
    made_of: Mapping[str, str],
) -> dict[str, Any]:
    """Return the record of a conversion.

    Args:
        conversion: What was done.
        source: What it was done to.
        tensors: The tensors of the result.
        checksums: Tensor name -> XXH3-128 of its bytes, in hexadecimal.
        made_of: The same of every tensor of the source, by the names in its files.
    """
    return {
        "format": FORMAT,
        "source": {
            "path": None if source.hub_id else str(source.directory.resolve()),
            "hub_id": source.hub_id,
            "revision": source.revision,
            "xxh3_128": dict(made_of),
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


def source_checksums(
    infos: Iterable[TensorInfo], copies: Iterable[OutputTensor], known: Mapping[str, str]
) -> dict[str, str]:
    """Return the checksum of every tensor of an original.

    What a conversion copies has been summed by the writer already. The rest (keys and values, or the layers that a
    method changed) is read once more, a megabyte at a time on a few threads: that costs what reading from the page
    cache costs, for XXH3 sums faster than any disk reads.

    Args:
        infos: The tensors, as they lie in its files.
        copies: Tensors of a result; those that are copied whole need not be read again.
        known: Name of such a tensor in the result -> XXH3-128 of the bytes that were copied, in hexadecimal.

    Raises:
        CheckpointError: A file ends early, or cannot be read.
    """
    read: dict[_Place, str] = {}
    for one in copies:
        (first, *_) = one.pieces
        if one.is_copy and isinstance(first, Copy) and one.name in known:
            read[_place(first.span)] = known[one.name]
    infos = list(infos)
    places = {info.name: _place(Span(info.file, info.offset, info.size)) for info in infos}
    rest = [info for info in infos if places[info.name] not in read]
    with contextlib.closing(Sources()) as sources, ThreadPoolExecutor(_THREADS) as executor:
        sums = dict(
            zip((info.name for info in rest), executor.map(lambda one: checksum(sources, one), rest), strict=True)
        )
    return {name: sums[name] if name in sums else read[place] for name, place in places.items()}


def _place(span: Span) -> _Place:
    return _key(span.file), span.offset, span.size


def _key(file: File) -> Path | int:
    return file if isinstance(file, Path) else id(file)  # the bytes of one that stands in for another are its own


def checksum(sources: Sources, info: TensorInfo) -> str:
    """Return the XXH3-128 checksum of a tensor's bytes, in hexadecimal.

    Raises:
        CheckpointError: Its file ends early, or cannot be read.
    """
    found, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_BUFFER, info.size)))
    for start in range(0, info.size, _BUFFER):
        view = buffer[: min(_BUFFER, info.size - start)]
        sources.read_into(Span(info.file, info.offset + start, len(view)), view)
        found.update(view)
    return found.hexdigest()


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {package: _version(package) for package in packages}


_version = functools.cache(version)  # 25 ms each, which a sweep or a test pays for every checkpoint


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
    content = made_visible(read_json(directory / RECORD))  # its words are printed
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
    made_of = {str(name): str(one) for name, one in source.get("xxh3_128", {}).items()}
    place = source["path"], source["hub_id"], source["revision"]
    return Record(conversion, *place, dict(content["versions"]), tensors, made_of)
