"""Everything that a conversion will do, before it does anything; every refusal is made here or by the target.

transformers says what it expects for the original's config and for the rewritten one (`Architecture`); the tensors that
differ are the ones to change, the family's row says what their rows mean, and each becomes a sequence of pieces. The
plan is made once; a method that changes whole layers puts them into it (`with_layers`).

Pure: names, shapes and byte ranges in, pieces out. Nothing is read and nothing is written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mha2gqa.errors import FamilyError
from mha2gqa.families.blueprint import ConfigJson, Shape, Spelling
from mha2gqa.families.cache import cache_bytes
from mha2gqa.files.pieces import LayerResult, OutputTensor
from mha2gqa.heads.grouping import Groups
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.target import Aim, Change, Pieces, Target

_ABSENT = object()


@dataclass(frozen=True)
class ConfigChange:
    """One key of config.json that gets another value."""

    path: tuple[str, ...]
    before: Any
    """None also where there was none."""
    after: Any
    """None also where there is none any more."""


@dataclass(frozen=True)
class Plan:
    """What will be done to a checkpoint."""

    aim: Aim
    config_changes: tuple[ConfigChange, ...]
    pieces: Pieces

    @property
    def original(self) -> Original:
        """What it is done to, in the class that can express the result."""
        return self.aim.original

    @property
    def result(self) -> Architecture:
        """What comes of it."""
        return self.aim.result

    @property
    def change(self) -> Change:
        """What changes about attention."""
        return self.aim.change

    @property
    def rehosted_from(self) -> str | None:
        """The model type of the original's files, where the result is of another."""
        source = self.original.origin.model_type
        return source if source != self.result.config_json.get("model_type") else None

    @cached_property
    def recomputed(self) -> frozenset[str]:
        """The tensors that are computed of the original's for another class, before or without anything else."""
        made = (tensor.name for tensor in self.tensors if tensor.is_made)
        return self.original.origin.recomputed.union(made)

    @property
    def tensors(self) -> tuple[OutputTensor, ...]:
        """The tensors of the result, in the original's file order."""
        return self.pieces.tensors

    @property
    def groups(self) -> Mapping[str, Groups]:
        """Attention module -> which source heads each KV head of the result is made of."""
        return self.pieces.groups

    @property
    def changed(self) -> tuple[OutputTensor, ...]:
        """The tensors that are not the original's, byte for byte."""
        return tuple(tensor for tensor in self.tensors if not tensor.is_copy)

    @property
    def size(self) -> int:
        """Bytes of the weights that will be written."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def _itemsize(self) -> int:
        """Bytes of a number in the dtype that most of the weights have."""
        sizes: dict[int, int] = {}
        for tensor in self.tensors:
            itemsize = tensor.size // max(1, tensor.parameters)
            sizes[itemsize] = sizes.get(itemsize, 0) + tensor.size
        return max(sizes, key=lambda size: sizes[size])

    @cached_property
    def cache(self) -> tuple[int, int]:
        """Bytes of KV cache a token, before and after, in the dtype that most of the weights have."""
        sides = (self.original.architecture, self.result)
        before, after = (cache_bytes(model.cached, self._itemsize) for model in sides)
        return before, after

    @cached_property
    def cache_at(self) -> dict[int, tuple[int, int]]:
        """Bytes of KV cache of a text as long as the model reads, before and after; empty where no window bounds it."""
        most = getattr(self.result.text_config, "max_position_embeddings", None)
        sides = [self.original.architecture.cached, self.result.cached]
        if not isinstance(most, int) or not any(layer.window for side in sides for layer in side):
            return {}
        before, after = (cache_bytes(side, self._itemsize, most) for side in sides)
        return {most: (before, after)}

    def with_layers(self, layers: Sequence[LayerResult]) -> "Plan":
        """Return the plan with attention layers that a method has changed as a whole."""
        return replace(self, pieces=self.aim.pieces(layers)) if layers else self


def make_plan(original: Original, target: Target) -> Plan:
    """Plan a conversion.

    Args:
        original: In a class that can express the result, as `target.host` gives it.
        target: What its attention shall become.

    Raises:
        GroupsError: The number is not possible; the message lists what is.
        FamilyError: The family cannot be converted.
        CheckpointError: The tensors do not fit the config, or are quantised.
    """
    aim = target.aim(original)
    pieces = aim.pieces(())
    plan = Plan(aim, tuple(_config_changes(original.config_json, aim.result.config_json)), pieces)
    _check_result(plan, original.spelling(original.architecture.blueprint), _needed(original.spelling, aim.result))
    return plan


def _needed(spelling: Spelling, model: Architecture) -> dict[str, Shape]:
    """Return the tensors that a file must have: of those that are tied to one another it may name either."""
    known = model.blueprint
    tied = known.module_shapes.keys() - known.parameters.keys() - known.shapes.keys()
    second = {spelling.named(name) for name in tied}
    return {name: shape for name, shape in spelling(known).items() if name not in second}


def _config_changes(before: ConfigJson, after: ConfigJson, path: tuple[str, ...] = ()) -> Iterator[ConfigChange]:
    """Yield each key that differs, those that are gone last; another class has other keys."""
    for key, value in after.items():
        held = before.get(key, _ABSENT)
        if isinstance(value, dict) and isinstance(held, dict):
            yield from _config_changes(held, value, (*path, key))
        elif isinstance(value, dict) and held is _ABSENT:
            yield from _config_changes({}, value, (*path, key))
        elif type(value) is not type(held) or value != held:
            yield ConfigChange((*path, key), None if held is _ABSENT else held, value)
    for key, held in before.items():
        if key not in after:
            yield ConfigChange((*path, key), held, None)


def _check_result(plan: Plan, before: Mapping[str, Shape], after: Mapping[str, Shape]) -> None:
    """Hold the plan against what transformers expects for the new config, name by name."""
    planned = {tensor.name: tensor.shape for tensor in plan.tensors}
    for name, shape in after.items():
        if planned.get(name, shape) != shape or (
            name in before and name not in planned and name in plan.pieces.dropped
        ):
            raise FamilyError(
                f"Tensor {name!r} would get shape {planned.get(name)}, which transformers would not load",
                expected=f"shape {shape}",
                remedy="Please report the model type",
            )
