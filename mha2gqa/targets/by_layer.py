"""Fewer KV heads, each layer its own number: what it needs, under one budget of cache.

Legend: H query heads, K KV heads of the source, G KV heads of a layer of the result.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any

from mha2gqa.errors import FamilyError, GroupsError
from mha2gqa.families.blueprint import Spelling, by_module
from mha2gqa.families.changes import Change as TensorChange
from mha2gqa.families.changes import find_changes
from mha2gqa.families.counts import Count, Move, rewrite
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.heads.grouping import divisors
from mha2gqa.hosts.choice import objection_to, write_config
from mha2gqa.hosts.layered import LLAMA, engines
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.pieces import rearranged
from mha2gqa.targets.target import Aim, Change, Fact


@dataclass(frozen=True)
class HeadsByLayer:
    """G KV heads for each layer."""

    groups: tuple[int, ...]
    """G of each layer, first to last."""

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> "HeadsByLayer":
        """Return the target of a record's options."""
        groups = tuple(int(number) for number in str(options["groups"]).split(","))
        if min(groups) < 1:
            raise ValueError(f"{options['groups']} gives a layer no head")
        return cls(groups)

    @classmethod
    def parse_change(cls, content: Mapping[str, Any]) -> Change:
        """Return what a record says that changed."""
        return _change(content["source_heads"], content["target_heads"])

    @classmethod
    def found(cls, model: Architecture, changed: AbstractSet[tuple[str, ...]]) -> dict[str, Any]:
        """Return the KV heads of each layer of a converted model."""
        return {"heads": _written(heads_of(model))}

    def options(self) -> Mapping[str, object]:
        """Return G of each layer."""
        return {"groups": _written(self.groups)}

    def suffix(self) -> str:
        """Return `gqa2-2-4-8`, or with many layers the mean, `gqa-mean4.5`."""
        if len(self.groups) <= 8:
            return f"gqa{'-'.join(map(str, self.groups))}"
        return f"gqa-mean{sum(self.groups) / len(self.groups):g}"

    def host(self, original: Original) -> Original:
        """Return the original in the class that counts the KV heads of each layer.

        Raises:
            FamilyError: It is none that the class can express.
            GroupsError: There are more or fewer layers, or a number does not divide K.
            CheckpointError: The weights are quantised, or do not fit the config.
        """
        model = original.architecture
        refuse_quantised(model.config_json)
        if model.model_type == LLAMA.model_type:
            return original
        if model.model_type != "llama" or objection_to(LLAMA, model, 1):
            raise FamilyError(
                f"No class that engines read gives each layer of a {model.model_type!r} model its own number of KV "
                "heads: transformers takes `per_layer_config`, and its model classes refuse it",
                expected="a llama model without a window",
                remedy="Give one number with --groups",
            )
        self._check(model)
        from mha2gqa.hosts.rehost import written_as  # it makes tensors

        return written_as(original, LLAMA, write_config(LLAMA, model))

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original that `host` gave.

        Raises:
            GroupsError: There are more or fewer layers, or a number does not divide K.
        """
        self._check(original.architecture)
        return aim_at_layers(original, self.groups)

    def _check(self, model: Architecture) -> None:
        before = heads_of(model)
        if len(before) != len(self.groups):
            raise GroupsError(
                f"--groups has {len(self.groups)} numbers, and the model {len(before)} layers", expected="one a layer"
            )
        for number, (has, gets) in enumerate(zip(before, self.groups, strict=True)):
            if gets < 1 or has % gets:
                possible = ", ".join(map(str, divisors(has)))
                raise GroupsError(f"Layer {number} has {has} KV heads, and --groups {gets} for it", expected=possible)


def aim_at_layers(original: Original, groups: Sequence[int]) -> Aim:
    """Return what becomes of an original with other numbers of KV heads in its layers, fewer or more."""
    model = original.architecture
    before = heads_of(model)
    moves = _moves(model, before, groups)
    changes = [change for _, found in _changes(model, moves, original.spelling) for change in found]
    return Aim(
        original=original,
        result=Architecture(rewrite(model.config_json, moves)),
        change=_change(_written(before), _written(groups)),
        notes=(engines(model.config),),
        pieces=partial(rearranged, original, changes),
        layers=lambda: model.layers_of(_changes(model, moves, by_module)),
    )


def _moves(model: Architecture, before: Sequence[int], after: Sequence[int]) -> list[Move]:
    """Return one move for all layers that have the same number and get the same."""
    places = {path[1]: path for count in model.counts for path in count.paths}
    together: dict[tuple[int, int], list[int]] = {}
    for number, move in enumerate(zip(before, after, strict=True)):
        together.setdefault(move, []).append(number)
    return [
        (Count(model.decoders[0], tuple(places[str(number)] for number in numbers), has), gets)
        for (has, gets), numbers in together.items()
        if has != gets
    ]


def _changes(model: Architecture, moves: list[Move], spelling: Spelling) -> list[tuple[Count, list[TensorChange]]]:
    source = model.config_json, model.blueprint, spelling
    return [(count, find_changes(*source, count, heads)) for count, heads in moves]


def heads_of(model: Architecture) -> tuple[int, ...]:
    """Return the KV heads of each layer, first to last."""
    return tuple(layer.counted for layer in model.cached)


def _written(groups: Sequence[int]) -> str:
    return ",".join(map(str, groups))


def _change(before: str, after: str) -> Change:
    fact = Fact(name="heads", label="KV heads by layer", before=before, after=after)
    return Change(facts=(fact,), effect="loss", tags=("gqa",), lacks="has one number of KV heads for all layers")
