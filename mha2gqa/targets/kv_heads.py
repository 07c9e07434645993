"""Fewer KV heads (GQA-G, MQA): which numbers a model can have, and which it gets.

Legend: H query heads, K KV heads of the source, G KV heads of the result.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from mha2gqa import shipped
from mha2gqa.errors import FamilyError, GroupsError
from mha2gqa.families.counts import Count, Move, refuse_family
from mha2gqa.heads.grouping import divisors
from mha2gqa.hosts import has_hosts, hosts_by_groups
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.pieces import rearranged
from mha2gqa.targets.target import Aim, Change, Effect, Fact

Wanted: TypeAlias = int | Mapping[str, int]
"""KV heads of the result: one number for all attention but an encoder's, or one for each kind, `{"cross": 4}`."""


@dataclass(frozen=True)
class KvHeads:
    """G KV heads in the place of K: those of a group become one."""

    wanted: Wanted
    """G; kinds of attention that a mapping leaves out stay as they are, and so do layers with fewer heads already."""

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> "KvHeads":
        """Return the target of a record's options."""
        groups = options["groups"]
        return cls(
            {str(part): int(number) for part, number in groups.items()} if isinstance(groups, Mapping) else int(groups)
        )

    @classmethod
    def parse_change(cls, content: Mapping[str, Any]) -> Change:
        """Return what a record says that changed."""
        return heads_change(int(content["source_heads"]), int(content["target_heads"]), "loss")

    @classmethod
    def found(cls, model: Architecture, changed: AbstractSet[tuple[str, ...]]) -> dict[str, Any]:
        """Return the KV heads of a converted model, where its config was changed."""
        return {"heads": found_heads(model, changed)}

    def options(self) -> Mapping[str, object]:
        """Return G as it was asked for."""
        return {"groups": self.wanted if isinstance(self.wanted, int) else dict(self.wanted)}

    def suffix(self) -> str:
        """Return `gqa4`, `mqa`, or `decoder8-cross4`."""
        if isinstance(self.wanted, int):
            return "mqa" if self.wanted == 1 else f"gqa{self.wanted}"
        return "-".join(f"{part}{number}" for part, number in self.wanted.items())

    def host(self, original: Original) -> Original:
        """Return the original in a class that has a number of KV heads.

        Raises:
            FamilyError: No class can express the model.
            GroupsError: None can with this number of KV heads.
            CheckpointError: The weights are quantised, or do not fit the config.
        """
        if not has_hosts(original.architecture):
            return original
        from mha2gqa.hosts.rehost import rehost  # it makes tensors

        return rehost(original, self.wanted if isinstance(self.wanted, int) else min(self.wanted.values()))

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original.

        Raises:
            GroupsError: G is not possible; the message lists what is.
            FamilyError: The family cannot be converted.
            CheckpointError: The weights that would change are quantised.
        """
        model = original.architecture
        moves = self.moves(model)
        aim = aim_at_heads(original, moves, "loss")
        if model.model_type not in shipped.GROUPED:
            return aim
        from mha2gqa.hosts.shipped import engines, known_targets, targets

        known = known_targets(model.model_type) if any(count.heads != heads for count, heads in moves) else []
        return replace(aim, notes=(engines(model.model_type, targets(aim.layers()) if known is None else known),))

    def moves(self, model: Architecture) -> list[Move]:
        """Return each number of KV heads of a model, and what it becomes.

        Raises:
            GroupsError: G is not possible; the message lists what is.
            FamilyError: The family cannot be converted.
        """
        refuse_family(model.config_json)  # before its model is built, which may be impossible
        wanted = self._by_part(model)
        for part, number in wanted.items():
            _check_groups(number, [count for count in model.counts if count.part == part])
        return [(count, min(count.heads, wanted.get(count.part, count.heads))) for count in model.counts]

    def _by_part(self, model: Architecture) -> Mapping[str, int]:
        """Return G of each kind of attention that changes."""
        there = list(dict.fromkeys(count.part for count in model.counts))
        if isinstance(self.wanted, int):
            return dict.fromkeys((part for part in there if part != "encoder"), self.wanted)
        if missing := [part for part in self.wanted if part not in there]:
            raise GroupsError(
                f"{model.counts[0].decoder.config.model_type!r} has no {missing[0]} attention whose KV heads it counts",
                expected=f"one of {', '.join(there)}",
            )
        return self.wanted


def aim_at_heads(original: Original, moves: Sequence[Move], effect: Effect) -> Aim:
    """Return what becomes of an original with other numbers of KV heads, fewer or more."""
    model = original.architecture
    moved = [(count, heads) for count, heads in moves if count.heads != heads] or moves
    before, after = max(count.heads for count, _ in moved), max(heads for _, heads in moved)
    changes = model.changes(moves, original.spelling)
    if before != after and not changes:
        raise no_effect(model.model_type)
    return Aim(
        original=original,
        result=model.with_heads(moves),
        change=heads_change(before, after, effect),
        pieces=partial(rearranged, original, changes),
        layers=partial(model.attention_layers, moves),
    )


def no_effect(model_type: str) -> FamilyError:
    """Return the refusal of a model whose tensors do not depend on its number of KV heads."""
    return FamilyError(
        f"The number of KV heads in a {model_type!r} config changes no tensor of its transformers class",
        expected="a class whose K and V are sized by it",
    )


def heads_change(before: int, after: int, effect: Effect) -> Change:
    """Return the change of a number of KV heads: the largest number, where layers differ."""
    fact = Fact(name="heads", label="KV heads", before=before, after=after)
    return Change(facts=(fact,), effect=effect, tags=("mqa" if after == 1 else "gqa",))


def found_heads(model: Architecture, changed: AbstractSet[tuple[str, ...]]) -> int:
    """Return the largest number of KV heads that stands where a config was changed; others may have been left alone."""
    moved = [count for count in model.counts if changed & {*count.paths}]
    return max(count.heads for count in moved or model.counts)


def choices(model: Architecture) -> dict[int, str | None]:
    """Return every G that a model can have, its own K first, and the model type of a result in another class.

    Raises:
        FamilyError: The family cannot be converted.
    """
    if hosts := hosts_by_groups(model):
        return {groups: hosts[groups].model_type for groups in sorted(hosts, reverse=True)}
    main = [count for count in model.counts if count.part != "encoder"]
    return dict.fromkeys(sorted(possible_groups(main), reverse=True) if main else [])


def possible_groups(counts: Sequence[Count]) -> list[int]:
    """Return every G that `counts` allow, the source's own number included; least first."""
    largest = max(count.heads for count in counts)
    return [groups for groups in divisors(largest) if all(_allows(count, groups) for count in counts)]


def _check_groups(groups: int, counts: Sequence[Count]) -> None:
    possible = possible_groups(counts)
    if groups not in possible:
        heads = max(count.heads for count in counts)
        fewer = f"more than its {heads} KV heads" if groups > heads else f"a model with {heads} KV heads"
        raise GroupsError(
            f"--groups {groups} does not fit {fewer}",
            expected=f"one of {', '.join(map(str, possible))}",
            remedy="To repeat KV heads instead, use `mha2gqa expand`" if groups > heads else "",
        )


def _allows(count: Count, groups: int) -> bool:
    kinds = {"divisors": True, "even": groups % 2 == 0, "ends": groups in (1, count.heads)}
    return groups >= count.heads or (count.heads % groups == 0 and kinds[count.decoder.family.groups])
