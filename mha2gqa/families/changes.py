"""Which tensors depend on a number of KV heads, and what they are.

transformers answers the first question (the difference of two blueprints), the family's row the
second. `plan.py` turns the answer into pieces, `cache.py` into bytes of KV cache.
"""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mha2gqa.errors import FamilyError
from mha2gqa.families.blueprint import Blueprint, ConfigJson, Shape, Spelling, blueprint
from mha2gqa.families.counts import Count, rewrite
from mha2gqa.families.layouts import Geometry, Layout, separate
from mha2gqa.families.names import PLAIN
from mha2gqa.families.outlines import Settings
from mha2gqa.families.row import TensorRule


@dataclass(frozen=True)
class Change:
    """What happens to the tensors of one kind that depend on one count."""

    names: Mapping[str, tuple[Shape | None, Shape | None]]
    """File name -> shape before and after; None where the tensor does not exist."""
    known: Set[str]
    """All names that transformers expects in the source's file."""
    pattern: re.Pattern[str]
    rule: TensorRule
    before: Geometry
    after: Geometry

    def module(self, name: str) -> str:
        """Return the path of the attention module that owns a tensor."""
        match = self.pattern.search(name)
        return name[: match.start()] if match else name

    @cached_property
    def modules(self) -> frozenset[str]:
        """The attention modules whose tensors change."""
        return frozenset(self.module(name) for name in self.names)

    @cached_property
    def _shapes(self) -> dict[tuple[str, Shape | None], Shape | None]:
        return {(self._tail(name), before): after for name, (before, after) in self.names.items()}

    def new_shape(self, name: str, shape: Shape) -> Shape | None:
        """Return the shape that a tensor gets, None when this change does not cover it.

        Layers for multi-token prediction are in the file and share the config but are in no module
        tree; they are covered by the end of their names together with their shape.
        """
        if name in self.known:
            return self.names[name][1] if name in self.names else None
        return self._shapes.get((self._tail(name), shape)) if self.pattern.search(name) else None

    def reversed(self) -> "Change":
        """Return the same change the other way round."""
        names = {name: (after, before) for name, (before, after) in self.names.items()}
        known = (self.known - names.keys()) | {name for name, (before, _) in names.items() if before is not None}
        return replace(self, names=names, known=known, before=self.after, after=self.before)

    def _tail(self, name: str) -> str:
        module = self.module(name)
        return module.rpartition(".")[2] + name.removeprefix(module)

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """The order of rows before and after."""
        several, one = self.rule.source, self.rule.multi_query or self.rule.source
        return (one if self.before.kv_heads == 1 else several), (one if self.after.kv_heads == 1 else several)


def find_changes(
    config_json: ConfigJson, source: Blueprint, spelling: Spelling, count: Count, heads: int
) -> list[Change]:
    """Ask transformers which tensors depend on `count`, and the family's row what they are.

    Args:
        config_json: The config of the source.
        source: Its blueprint.
        spelling: How the tensors are named.
        count: The number of KV heads to change.
        heads: What to change it to.

    Raises:
        FamilyError: A tensor depends on the count that no row explains.
    """
    if heads == count.heads:
        return []
    before, after = spelling(source), spelling(blueprint(rewrite(config_json, [(count, heads)])))
    different = {
        name: (before.get(name), after.get(name)) for name in {**before, **after} if before.get(name) != after.get(name)
    }
    rules = [*count.decoder.family.tensors.items(), (PLAIN, TensorRule())]
    by_rule: dict[int, dict[str, tuple[Shape | None, Shape | None]]] = {}
    patterns = [re.compile(rf"(?:^|\.)(?:{pattern})$") for pattern, _ in rules]
    widths: set[int] = set()
    for name, shapes in different.items():
        number = next((number for number, pattern in enumerate(patterns) if pattern.search(name)), None)
        if number is None:
            raise FamilyError(
                f"Tensor {name!r} of a {source.settings.model_type!r} model depends on the number of KV heads in a way "
                "that mha2gqa does not know",
                remedy="Please report the model type; a family is one row of families/table.py",
            )
        if rules[number][1].source is separate and rules[number][1].cached:
            widths = widths or _widths(count)
            _check_width(name, shapes[0], count, rules[number][1], widths)
        by_rule.setdefault(number, {})[name] = shapes
    changes = []
    for number, names in by_rule.items():
        rule = rules[number][1]
        width = int(getattr(count.decoder.config, rule.head_width)) if rule.head_width else None
        geometry = Geometry(count.decoder.query_heads, count.heads, width)
        changes.append(
            Change(names, before.keys(), patterns[number], rule, geometry, replace(geometry, kv_heads=heads))
        )
    return changes


def _widths(count: Count) -> set[int]:
    """Return the widths that a config names for a head."""
    config: Any = count.decoder.config
    widths = set(_head_widths(config.known if isinstance(config, Settings) else config.to_dict()))
    if hidden := getattr(config, "hidden_size", None):
        widths.add(hidden // count.decoder.query_heads)
    return widths


def _check_width(name: str, shape: Shape | None, count: Count, rule: TensorRule, widths: Set[int]) -> None:
    """Refuse a K or V tensor that holds another number of heads than its count says.

    A class may multiply the count for some layers. Cutting such a tensor into `count` heads would
    merge halves of different heads without any error, so a head must have a width that the config names.
    """
    if shape is None or rule.head_width or shape[0] // count.heads in widths:
        return
    raise FamilyError(
        f"Tensor {name!r} has {shape[0]} rows, which are not {count.heads} heads of any width that the config names",
        expected=f"heads of {', '.join(map(str, sorted(widths)))}",
        remedy="Please report the model type; a family is one row of families/table.py",
    )


def _head_widths(content: Mapping[str, Any]) -> Iterator[int]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _head_widths(value)
        elif isinstance(value, int) and ("head_dim" in str(key) or key == "d_kv"):
            yield value
