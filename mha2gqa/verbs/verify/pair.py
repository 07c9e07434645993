"""Finds the converted checkpoint, its record and its original, and refuses two that do not belong together.

What the two configs must share is checked here, and a few small tensors against the record's checksums;
whether the converted files are what they should be is `file_level.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from mha2gqa.errors import OriginalMissingError, PairError, SourceError
from mha2gqa.files.pieces import Span, TensorInfo
from mha2gqa.files.reader import RECORD, Checkpoint, read_checkpoint, read_json
from mha2gqa.files.record import WrittenRecord, read_record
from mha2gqa.files.source import Source, find_source, reference_directory
from mha2gqa.files.streams import Sources
from mha2gqa.hosts import rehost
from mha2gqa.verbs.verify.outcome import Conversion

_SAMPLED = 8
"""Tensors that are held against the record before anything else is done; the smallest ones."""
_REFERENCE = ("mha2gqa", "reference", "checkpoint")


@dataclass(frozen=True)
class Pair:
    """A converted checkpoint and what it was made from."""

    converted: Path
    source: Source
    written: WrittenRecord

    @property
    def original(self) -> Path:
        """Directory of the original."""
        return self.source.directory

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The original, as `reader.py` reads it; in the class of the converted one, where that is another."""
        checkpoint = read_checkpoint(self.original)
        record = self.written.record
        return checkpoint if record.rehosted_from is None else rehost(checkpoint, record.target_heads)


def find_pair(converted: Path | None, against: str | None) -> Pair:
    """Find the two checkpoints.

    Args:
        converted: The converted one; None looks for the one directory here that carries a record.
        against: The original; None takes what the record names.

    Raises:
        PairError: One cannot be found, or they do not belong together.
        CheckpointError: The record is missing or damaged, or the original is.
        SourceError: The original cannot be found or reached.
    """
    directory = find_converted() if converted is None else converted
    if not directory.is_dir():
        raise PairError(f"No such directory: {str(directory)!r}", expected="the output of a conversion")
    written = read_record(directory)
    pair = Pair(directory, _find_original(directory, written, against), written)
    _check_configs(pair.checkpoint.config, read_json(directory / "config.json"), pair)
    _check_samples(pair)
    return pair


def find_converted() -> Path:
    """Return the one converted checkpoint here.

    Raises:
        PairError: There is none, or several.
    """
    found = sorted(path.parent for path in Path().glob(f"[!.]*/{RECORD}"))  # hidden ones are what a kill has left
    if Path(RECORD).is_file():
        found.insert(0, Path())
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(path) for path in found)
    raise PairError(
        f"There are {len(found)} converted checkpoints here: {names}"
        if found
        else "There is no converted checkpoint here",
        expected=f"one directory with {RECORD}",
        remedy="Name the one that is meant",
    )


def _find_original(directory: Path, written: WrittenRecord, against: str | None) -> Source:
    if against is not None:
        return find_source(against)
    if written.hub_id:
        return find_source(f"{written.hub_id}@{written.revision}" if written.revision else written.hub_id)
    path = Path(written.source_path or "")
    if not path.is_dir() and path.parts[-3:] == _REFERENCE:
        return find_source(None)
    try:
        return find_source(None if path == reference_directory().resolve() else str(path))
    except SourceError as error:
        raise OriginalMissingError(
            f"The original of {directory} is not where the record says: {written.source_path}",
            remedy="Name it with --against",
        ) from error


def _check_configs(original: dict[str, Any], converted: dict[str, Any], pair: Pair) -> None:
    """Refuse configs whose models cannot be compared token by token and layer by layer."""
    facts = {"model types": "model_type", "vocabularies": "vocab_size", "depths": "num_hidden_layers"}
    for what, key in facts.items():
        before, after = _text_value(original, key), _text_value(converted, key)
        if before != after:
            raise PairError(
                f"{pair.original} and {pair.converted} have different {what}: {key} is {before!r} and {after!r}",
                expected="a converted checkpoint and its own original",
                remedy="Name the original with --against",
            )


def _text_value(config: dict[str, Any], key: str) -> Any:
    inner = config.get("text_config")
    return inner[key] if isinstance(inner, dict) and key in inner else config.get(key)


def _check_samples(pair: Pair) -> None:
    """Refuse an original whose tensors are not those that the record says were copied."""
    recorded = pair.written.tensors
    copied = [info for info in pair.checkpoint.tensors if info.name in recorded and not recorded[info.name].changed]
    if not copied and recorded:
        raise _not_the_original(pair, "none of its tensors is in the record")
    for info in sorted(copied, key=lambda info: (info.size, info.name))[:_SAMPLED]:
        if checksum(info) != recorded[info.name].checksum:
            raise _not_the_original(pair, f"its tensor {info.name!r} has another checksum than the record's")


def _not_the_original(pair: Pair, reason: str) -> PairError:
    return PairError(
        f"{pair.converted} was not made from {pair.original} as it is now: {reason}",
        expected=f"the checkpoint that was converted ({pair.written.hub_id or pair.written.source_path})",
        remedy="Name it with --against, or convert again",
    )


def not_the_original(pair: Pair, name: str) -> PairError:
    """Return the refusal of an original of which one tensor differs from what was copied from it."""
    return _not_the_original(pair, f"its tensor {name!r} has another checksum than the record's")


def describe(pair: Pair) -> Conversion:
    """Return what was converted, and how, by the record."""
    record = pair.written.record
    return Conversion(
        original=pair.source.hub_id or str(pair.original),
        converted=str(pair.converted),
        model_type=record.model_type,
        rehosted_from=record.rehosted_from,
        command=record.command,
        method=record.options.get("method"),
        way=record.way,
        options=record.options,
        heads_before=record.source_heads,
        heads_after=record.target_heads,
        groups=record.groups,
        versions=pair.written.versions,
        text=record.text,
        uptrained=tuple(_training(entry) for entry in record.uptrain),
        errors={layer["module"]: layer["errors"] for layer in record.layers if layer["errors"]},
    )


def _training(entry: Mapping[str, Any]) -> str:
    return f"{entry['train']}, {entry['objective']}, {entry['length']['steps']:,} steps"


def checksum(info: TensorInfo) -> str:
    """Return the XXH3-128 checksum of a small tensor's bytes, in hexadecimal."""
    sources = Sources()
    try:
        content = bytearray(info.size)
        sources.read_into(Span(info.file, info.offset, info.size), memoryview(content))
    finally:
        sources.close()
    return xxhash.xxh3_128_hexdigest(content)
