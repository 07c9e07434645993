"""Which numbers of KV heads a model can have, and which it gets: what is asked for, held against its config.

Legend: H query heads, K KV heads of the source, G KV heads of the result.
"""

from collections.abc import Mapping
from typing import TypeAlias

from mha2gqa.errors import GroupsError
from mha2gqa.families.blueprint import ConfigJson, blueprint
from mha2gqa.families.counts import Count, find_counts, refuse_family
from mha2gqa.files.tensors import refuse_quantised
from mha2gqa.heads.grouping import divisors

Wanted: TypeAlias = int | Mapping[str, int]
"""KV heads of the result: one number for all attention but an encoder's, or one for each kind, `{"cross": 4}`."""

Target: TypeAlias = tuple[Count, int]
"""A number of KV heads of a config, and what it becomes."""


def fewest(groups: Wanted) -> int:
    """Return the smallest G that is asked for."""
    return groups if isinstance(groups, int) else min(groups.values())


def convert_targets(config: ConfigJson, groups: Wanted) -> list[Target]:
    """Return each number of KV heads of a config, and what it becomes in a conversion.

    Raises:
        GroupsError: `groups` is not possible; the message lists what is.
        FamilyError: The family cannot be converted.
        CheckpointError: The weights are quantised.
    """
    refuse_quantised(config)
    refuse_family(config)
    counts = find_counts(config, blueprint(config))
    wanted = _by_part(groups, counts)
    for part, number in wanted.items():
        _check_groups(number, [count for count in counts if count.part == part])
    return [(count, min(count.heads, wanted.get(count.part, count.heads))) for count in counts]


def _by_part(groups: Wanted, counts: list[Count]) -> Mapping[str, int]:
    """Return G of each kind of attention that changes.

    Raises:
        GroupsError: The model has no such kind.
    """
    there = list(dict.fromkeys(count.part for count in counts))
    if isinstance(groups, int):
        return dict.fromkeys((part for part in there if part != "encoder"), groups)
    if missing := [part for part in groups if part not in there]:
        raise GroupsError(
            f"{counts[0].decoder.config.model_type!r} has no {missing[0]} attention whose KV heads it counts",
            expected=f"one of {', '.join(there)}",
        )
    return groups


def _check_groups(groups: int, counts: list[Count]) -> None:
    possible = possible_groups(counts)
    if groups not in possible:
        heads = max(count.heads for count in counts)
        fewer = f"more than its {heads} KV heads" if groups > heads else f"a model with {heads} KV heads"
        raise GroupsError(
            f"--groups {groups} does not fit {fewer}",
            expected=f"one of {_listed(possible)}",
            remedy="To repeat KV heads instead, use `mha2gqa expand`" if groups > heads else "",
        )


def expand_targets(config: ConfigJson, heads: int | None) -> list[Target]:
    """Return each number of KV heads of a config, and what an expansion makes of it: `heads`, or one a query head.

    Raises:
        GroupsError: `heads` is not a multiple of K that divides H.
        FamilyError: The family cannot be expanded.
        CheckpointError: The weights are quantised.
    """
    refuse_quantised(config)
    refuse_family(config)
    counts = find_counts(config, blueprint(config))
    targets = [(count, count.decoder.query_heads if heads is None else heads) for count in counts]
    for count, target in targets:
        possible = _possible_heads(count)
        if target not in possible:
            raise GroupsError(
                f"{count.heads} KV heads cannot be repeated to {target} "
                f"(the model has {count.decoder.query_heads} query heads)",
                expected=f"one of {_listed(possible)}",
            )
    return targets


def _possible_heads(count: Count) -> list[int]:
    queries = count.decoder.query_heads
    widest = queries // count.decoder.family.widest
    return [heads for heads in divisors(widest) if heads % count.heads == 0 and _is_switchable(count, heads)]


def _is_switchable(count: Count, heads: int) -> bool:
    return not count.decoder.family.switch or heads in (1, count.decoder.query_heads)


def possible_groups(counts: list[Count]) -> list[int]:
    """Return every G that `counts` allow, the source's own number included."""
    largest = max(count.heads for count in counts)
    return [groups for groups in divisors(largest) if all(_allows(count, groups) for count in counts)]


def _allows(count: Count, groups: int) -> bool:
    kinds = {"divisors": True, "even": groups % 2 == 0, "ends": groups in (1, count.heads)}
    return groups >= count.heads or (count.heads % groups == 0 and kinds[count.decoder.family.groups])


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
