"""What lies beside the weights of a converted checkpoint, and what its config says, held against the original."""

import copy
import filecmp
import itertools
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from mha2gqa.families.counts import FORMER_KEYS
from mha2gqa.files.belongs import is_read
from mha2gqa.files.reader import Checkpoint
from mha2gqa.model.original import Original
from mha2gqa.record.pair import Pair
from mha2gqa.targets.plan import Plan
from mha2gqa.verbs.verify.levels import Finding

_OF_TRAINING = "uptrain.yaml"
"""The recipe that a training leaves beside its result."""
_ABSENT = object()
_MOST = 10_000
"""Files of a folder that are looked at by name."""


def companion_findings(pair: Pair, converted: Checkpoint) -> Iterator[Finding]:
    """Yield each file beside the weights that is missing, differs, or is there and read by somebody."""
    original = pair.original
    beside, added = original.checkpoint.companions, original.origin.files
    for companion in beside:
        before, after = original.directory / companion, converted.directory / companion
        if not after.is_file():
            yield finding(companion, "is missing; the original has it")
        elif str(companion) not in added and not filecmp.cmp(before, after, shallow=False):
            yield finding(companion, "differs from the original's")
    for name, text in added.items():
        file = converted.directory / name
        if not file.is_file() or file.read_bytes() != text.encode():
            yield finding(name, "is not what this version writes for the class")
    if pair.conversion.uptrain and not (converted.directory / _OF_TRAINING).is_file():
        yield finding(_OF_TRAINING, "is missing; the record tells of a training, which leaves its recipe")
    known = {*map(str, beside), *added}
    for path in _strangers(original, converted):
        if str(path) not in known and is_read(path):
            yield finding(path, "is not beside the original, and loaders may read it")


def _strangers(original: Original, converted: Checkpoint) -> Iterator[PurePath]:
    """Yield all files of a result but its config, record, card and weights; of folders those that lie below."""
    yield from converted.companions
    for name in converted.left_behind:
        path = converted.directory / name
        if name.endswith("/") and not path.is_symlink():
            below = (one.relative_to(converted.directory) for one in path.rglob("*") if one.is_file())
            yield from itertools.islice(below, _MOST)
        else:
            yield PurePath(name)


def config_findings(pair: Pair, converted: Checkpoint, plan: Plan | None) -> Iterator[Finding]:
    """Yield each key of config.json that is not what the conversion makes of the original's.

    Args:
        pair: The two checkpoints and the record.
        converted: The converted checkpoint.
        plan: The conversion, planned again; None where it cannot be.
    """
    if plan is not None:
        changed, expected = {change.path for change in plan.config_changes}, plan.result.config_json
    else:
        changed, expected = _recorded(pair)
    recorded = _recorded(pair)[0]
    for path, wanted, found in _differences(expected, converted.config):
        if found is _ABSENT and path[-1] in FORMER_KEYS and path not in recorded:
            continue  # a result of a former version: `rope_parameters` says the same
        name = ".".join(path)
        whose = "what this conversion makes of it" if path in changed else "the original's"
        yield finding(f"config.json: {name}", f"is {_show(found)}, not {whose}, {_show(wanted)}")
    for key in converted.stale:
        yield finding(f"config.json: {key}", "speaks of a quantisation that no tensor has")


def _recorded(pair: Pair) -> tuple[set[tuple[str, ...]], dict[str, Any]]:
    """Return the keys that the record says were changed, and the config that comes of it."""
    recorded = {tuple(change["path"]): change["after"] for change in pair.conversion.config_changes}
    expected = copy.deepcopy(pair.original.config_json)
    for path, value in recorded.items():
        holder = expected
        for key in path[:-1]:
            if not isinstance(holder.get(key), dict):  # a record may name a key inside what holds none
                holder[key] = {}
            holder = holder[key]
        holder[path[-1]] = value
    return set(recorded), expected


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            yield from _differences(one.get(key, _ABSENT), other.get(key, _ABSENT), (*path, key))
    elif type(one) is not type(other) or one != other:
        yield path, one, other


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def finding(guilty: str | Path | PurePath, problem: str) -> Finding:
    """Return a finding of the file level."""
    return Finding(level="file", guilty=str(guilty), problem=problem)
