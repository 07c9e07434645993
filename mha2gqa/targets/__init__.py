"""What attention shall become: `target` says what every target is, `plan` makes the plan of one, `pieces` its tensors.

NEW TARGET = ONE FILE + ONE LINE below.
"""

from collections.abc import Mapping
from typing import Any

from mha2gqa.targets.by_layer import HeadsByLayer
from mha2gqa.targets.expand import Expand
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.latent.target import Latent
from mha2gqa.targets.target import Chain, Target
from mha2gqa.targets.window import Window

TARGETS: Mapping[str, type[KvHeads] | type[Expand] | type[HeadsByLayer] | type[Window] | type[Latent]] = {
    "kv_heads": KvHeads,
    "expand": Expand,
    "heads_by_layer": HeadsByLayer,
    "window": Window,
    "latent": Latent,
}
"""Name in the record -> target."""


def recorded_target(names: tuple[str, ...], options: Mapping[str, Any]) -> Target:
    """Return the target that a record tells of.

    Raises:
        KeyError, TypeError, ValueError: It tells of none that this version knows.
    """
    targets = tuple(TARGETS[name].recorded(options) for name in names)
    return targets[0] if len(targets) == 1 else Chain(targets)


def names_of(target: Target) -> tuple[str, ...]:
    """Return the names by which the record tells of a target."""
    parts = target.targets if isinstance(target, Chain) else (target,)
    return tuple(name for part in parts for name, kind in TARGETS.items() if isinstance(part, kind))
