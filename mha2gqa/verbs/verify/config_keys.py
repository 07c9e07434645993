"""Holds the config of a converted checkpoint against its original's: only recorded keys may differ."""

import copy
from collections.abc import Iterator
from typing import Any

from mha2gqa.files.reader import RECORD, Checkpoint
from mha2gqa.record.pair import Pair
from mha2gqa.targets.plan import Plan
from mha2gqa.verbs.verify.levels import Finding

_ABSENT = object()


def config_findings(pair: Pair, converted: Checkpoint, plan: Plan | None) -> Iterator[Finding]:
    """Yield each key of config.json that is not the original's with the recorded changes made to it.

    Args:
        pair: The two checkpoints and the record.
        converted: The converted checkpoint.
        plan: The conversion, planned again; None where it cannot be.
    """
    recorded = {tuple(change["path"]): change["after"] for change in pair.conversion.config_changes}
    if plan is not None and recorded != {change.path: change.after for change in plan.config_changes}:
        problem = "lists other changes of config.json than this conversion makes"
        yield Finding(level="file", guilty=RECORD, problem=problem)
    expected = copy.deepcopy(pair.original.config_json)
    for path, value in recorded.items():
        holder = expected
        for key in path[:-1]:
            holder = holder.setdefault(key, {})
        holder[path[-1]] = value
    for path, wanted, found in _differences(expected, converted.config):
        name = ".".join(path)
        whose = "its recorded value" if path in recorded else "the original's"
        problem = f"is {_show(found)}, not {whose}, {_show(wanted)}"
        yield Finding(level="file", guilty=f"config.json: {name}", problem=problem)


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            yield from _differences(one.get(key, _ABSENT), other.get(key, _ABSENT), (*path, key))
    elif type(one) is not type(other) or one != other:
        yield path, one, other


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
