"""Everything that a conversion will do, before it does anything; every refusal is made here or in `targets.py`.

`plan_change` compares what transformers expects for the source's config with what it expects for the
rewritten one. The tensors that differ are the ones to change; the family's row says what their rows
mean; each becomes a sequence of pieces. Convert and expand are the same plan in two directions.

Pure: names, shapes and byte ranges in, pieces out. Nothing is read and nothing is written.

Legend: H query heads, K KV heads of the source, G KV heads of the result, E width of one head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mha2gqa.errors import FamilyError
from mha2gqa.families.blueprint import Blueprint, ConfigJson, Shape, blueprint, find_spelling
from mha2gqa.families.changes import find_changes
from mha2gqa.families.counts import Path, find_counts, rewrite
from mha2gqa.files.pieces import LayerResult, OutputTensor
from mha2gqa.files.reader import Checkpoint
from mha2gqa.heads.grouping import Groups
from mha2gqa.targets.kv_heads import Target, Wanted, convert_targets, expand_targets
from mha2gqa.targets.pieces import Builder


@dataclass(frozen=True)
class ConfigChange:
    """One key of config.json that gets another value."""

    path: Path
    before: Any
    after: Any


@dataclass(frozen=True)
class Plan:
    """What will be done to a checkpoint."""

    model_type: str
    source_heads: int
    """KV heads of the source, K (the largest number, where layers differ)."""
    target_heads: int
    """KV heads of the result, G."""
    config: ConfigJson
    """The rewritten config.json."""
    config_changes: tuple[ConfigChange, ...]
    tensors: tuple[OutputTensor, ...]
    """In the source's file order."""
    dropped: tuple[str, ...]
    """Source tensors that the result no longer has."""
    groups: Mapping[str, Groups]
    """Attention module -> which source heads each KV head of the result is made of."""

    @property
    def changed(self) -> tuple[OutputTensor, ...]:
        """The tensors that are not the source's, byte for byte."""
        return tuple(tensor for tensor in self.tensors if not tensor.is_copy)

    @property
    def size(self) -> int:
        """Bytes of the weights that will be written."""
        return sum(tensor.size for tensor in self.tensors)


def plan_convert(checkpoint: Checkpoint, groups: Wanted, layers: Sequence[LayerResult] = ()) -> Plan:
    """Plan a conversion to `groups` KV heads.

    Layers that have fewer KV heads than that already keep what they have.

    Args:
        checkpoint: The source.
        groups: G; kinds of attention that a mapping leaves out stay as they are.
        layers: Attention layers that a method has changed as a whole; all others are merged head by head.

    Raises:
        GroupsError: `groups` is not possible; the message lists what is.
        FamilyError: The family cannot be converted.
        CheckpointError: The tensors do not fit the config, or are quantised.
    """
    targets = convert_targets(checkpoint.config, groups)  # refuses families whose model cannot even be built
    return _plan(checkpoint, blueprint(checkpoint.config), targets, layers)


def plan_expand(checkpoint: Checkpoint, heads: int | None) -> Plan:
    """Plan the lossless expansion to `heads` KV heads, or to one per query head.

    Raises:
        GroupsError: `heads` is not a multiple of K that divides H.
        FamilyError: The family cannot be expanded.
        CheckpointError: The tensors do not fit the config, or are quantised.
    """
    targets = expand_targets(checkpoint.config, heads)
    return _plan(checkpoint, blueprint(checkpoint.config), targets)


def plan_restore(checkpoint: Checkpoint, original: ConfigJson) -> Plan:
    """Plan the lossless expansion of a converted checkpoint to the numbers of KV heads that its original has.

    Args:
        checkpoint: The converted one.
        original: Config of its original.

    Raises:
        CheckpointError: The tensors do not fit the config.
    """
    plan = blueprint(checkpoint.config)
    before = find_counts(original, blueprint(original))
    pairs = zip(find_counts(checkpoint.config, plan), before, strict=True)
    return _plan(checkpoint, plan, [(count, other.heads) for count, other in pairs])


def no_effect(model_type: str) -> FamilyError:
    """Return the refusal of a model whose tensors do not depend on its number of KV heads."""
    return FamilyError(
        f"The number of KV heads in a {model_type!r} config changes no tensor of its transformers class",
        expected="a class whose K and V are sized by it",
    )


def _plan(checkpoint: Checkpoint, source: Blueprint, targets: list[Target], layers: Sequence[LayerResult] = ()) -> Plan:
    config = rewrite(checkpoint.config, targets)
    spelling = find_spelling(source, {info.name for info in checkpoint.tensors})
    changes = [change for target in targets for change in find_changes(checkpoint.config, source, spelling, *target)]
    builder = Builder(checkpoint, changes, layers)
    moved = [(count, heads) for count, heads in targets if count.heads != heads] or targets
    plan = Plan(
        model_type=source.config.model_type,
        source_heads=max(count.heads for count, _ in moved),
        target_heads=max(heads for _, heads in moved),
        config=config,
        config_changes=tuple(_config_changes(checkpoint.config, targets)),
        tensors=tuple(builder.build()),
        dropped=tuple(sorted(builder.dropped)),
        groups=builder.groups,
    )
    _check_result(plan, spelling(source), spelling(blueprint(config)))
    return plan


def _config_changes(before: ConfigJson, targets: list[Target]) -> Iterator[ConfigChange]:
    for count, heads in targets:
        for path in count.paths:
            holder: Any = before
            for key in path:
                holder = holder.get(key) if isinstance(holder, dict) else None
            if holder != count.encode(heads) or isinstance(holder, bool) != isinstance(count.encode(heads), bool):
                yield ConfigChange(path, holder, count.encode(heads))


def _check_result(plan: Plan, before: Mapping[str, Shape], after: Mapping[str, Shape]) -> None:
    """Hold the plan against what transformers expects for the new config, name by name."""
    if plan.config_changes and not plan.changed and before == after and plan.source_heads != plan.target_heads:
        raise no_effect(plan.model_type)
    planned = {tensor.name: tensor.shape for tensor in plan.tensors}
    for name, shape in after.items():
        if planned.get(name, shape) != shape or (name in before and name not in planned and name in plan.dropped):
            raise FamilyError(
                f"Tensor {name!r} would get shape {planned.get(name)}, which transformers would not load",
                expected=f"shape {shape}",
                remedy="Please report the model type",
            )
