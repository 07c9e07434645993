"""Finds the converted checkpoint, its record and its original, and refuses two that do not belong together.

What the two configs must share is checked here, and a few small tensors against the record's checksums; whether the
converted files are what they should be is for `verify` to say.
"""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mha2gqa.errors import CheckpointError, OriginalMissingError, PairError, SourceError
from mha2gqa.files.reader import RECORD, read_json
from mha2gqa.files.source import Source, find_source, local_source, reference_directory
from mha2gqa.files.streams import Sources
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.record.conversion import Conversion
from mha2gqa.record.record import Record, checksum, read_record

_SAMPLED, _MATRICES = 8, 2
"""Tensors that are held against the record before anything else is done: the smallest ones, and the smallest that are
matrices, as norms may be the same in several trainings of one model."""
_REFERENCE = ("mha2gqa", "reference", "checkpoint")


@dataclass(frozen=True)
class Pair:
    """A converted checkpoint and what it was made from."""

    converted: Path
    """Directory."""
    record: Record
    original: Original
    """In the class of the converted one."""

    @property
    def conversion(self) -> Conversion:
        """What was done."""
        return self.record.conversion

    @cached_property
    def result(self) -> Architecture:
        """What the converted config says."""
        return Architecture(read_json(self.converted / "config.json"))


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
    directory = converted_directory(converted)
    record = read_record(directory)
    original = Original.read(_find_original(directory, record, against))
    if record.conversion.rehosted_from is not None:
        original = record.target.host(original)
    pair = Pair(directory, record, original)
    _check_configs(pair)
    _check_samples(pair)
    return pair


def converted_directory(named: Path | None) -> Path:
    """Return the directory of a converted checkpoint: the one that is named, else the only one here.

    Raises:
        PairError: It is not there, or there are none or several.
    """
    directory = find_converted() if named is None else named
    if not directory.is_dir():
        what = "No directory" if directory.exists() else "No such directory"
        raise PairError(
            f"{what}: {str(directory)!r}",
            expected="the output of a conversion",
            remedy="Name the directory that convert, expand or uptrain wrote",
        )
    return directory


def check_pair(converted: Path | None, against: str | None) -> Path:
    """Refuse, by small files alone, a converted checkpoint or a named original that is not there.

    Returns:
        The directory of the converted one.

    Raises:
        PairError: There is no such directory.
        CheckpointError: It has no record, or one that cannot be read.
        SourceError: The original that was named cannot be.
    """
    directory = converted_directory(converted)
    read_record(directory)
    if against is not None:
        local_source(against)
    return directory


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


def _find_original(directory: Path, record: Record, against: str | None) -> Source:
    if against is not None:
        return find_source(against)
    if record.hub_id:
        return find_source(f"{record.hub_id}@{record.revision}" if record.revision else record.hub_id)
    path = Path(record.source_path or "")
    if not path.is_dir() and path.parts[-3:] == _REFERENCE:
        return find_source(None)
    try:
        return find_source(None if path == reference_directory().resolve() else str(path))
    except SourceError as error:
        raise OriginalMissingError(
            f"The original of {directory} is not where the record says: {record.source_path}",
            remedy="Name it with --against",
        ) from error


def _check_configs(pair: Pair) -> None:
    """Refuse configs whose models cannot be compared token by token and layer by layer.

    One that cannot be read is a finding of `verify`, and refused by whatever else reads it.
    """
    try:
        read_json(pair.converted / "config.json")
    except CheckpointError:
        return
    facts = {"model types": "model_type", "vocabularies": "vocab_size", "depths": "num_hidden_layers"}
    changed = (pair.conversion.rehosted_from, pair.conversion.model_type)
    for what, key in facts.items():
        before, after = (_text_value(one, key) for one in (pair.original.config_json, pair.result.config_json))
        if before != after and (before, after) != changed:
            raise PairError(
                f"{pair.original.directory} and {pair.converted} have different {what}: "
                f"{key} is {before!r} and {after!r}",
                expected="a converted checkpoint and its own original",
                remedy="Name the original with --against",
            )


def _text_value(config: dict[str, Any], key: str) -> Any:
    inner = config.get("text_config")
    return inner[key] if isinstance(inner, dict) and key in inner else config.get(key)


def _check_samples(pair: Pair) -> None:
    """Refuse an original whose tensors are not those that the record says the result was made of.

    Records that do not keep that tell it by the tensors that were copied, of which a training may leave none.
    """
    if pair.record.made_of:
        infos, wanted = pair.original.filed, pair.record.made_of
    else:
        written = {name: one.checksum for name, one in pair.record.tensors.items() if not one.changed}
        infos, wanted = tuple(info for info in pair.original.tensors if info.name in written), written
        if pair.conversion.uptrain and not infos:
            return
    if not infos and pair.record.tensors:
        raise not_the_original(pair)
    with contextlib.closing(Sources()) as sources:
        ordered = sorted(infos, key=lambda info: (info.size, info.name))
        matrices = [info for info in ordered if len(info.shape) > 1]
        for info in dict.fromkeys((*ordered[:_SAMPLED], *matrices[:_MATRICES])):
            if checksum(sources, info) != wanted.get(info.name):
                raise not_the_original(pair, info.name)


def not_the_original(pair: Pair, tensor: str = "") -> PairError:
    """Return the refusal of an original of which one tensor, or every one, differs from what was copied from it."""
    differs = f"its tensor {tensor!r} has another checksum than the record's"
    reason = differs if tensor else "none of its tensors is in the record"
    return PairError(
        f"{pair.converted} was not made from {pair.original.directory} as it is now: {reason}",
        expected=f"the checkpoint that was converted ({pair.record.hub_id or pair.record.source_path})",
        remedy="Name it with --against, or convert again",
    )
