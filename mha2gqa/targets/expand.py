"""More KV heads, each repeated for some of the query heads that read it: no output changes.

Legend: H query heads, K KV heads of the source.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from mha2gqa.errors import GroupsError
from mha2gqa.families.counts import Count, refuse_family
from mha2gqa.heads.grouping import divisors
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.by_layer import aim_at_layers, heads_of
from mha2gqa.targets.kv_heads import aim_at_heads, found_heads, heads_change
from mha2gqa.targets.target import Aim, Change


@dataclass(frozen=True)
class Expand:
    """As many KV heads as wanted."""

    heads: int | None = None
    """None is one per query head (MHA)."""

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> "Expand":
        """Return the target of a record's options."""
        return cls(options.get("heads"))

    @classmethod
    def parse_change(cls, content: Mapping[str, Any]) -> Change:
        """Return what a record says that changed."""
        return heads_change(int(content["source_heads"]), int(content["target_heads"]), "rounding")

    @classmethod
    def found(cls, model: Architecture, changed: AbstractSet[tuple[str, ...]]) -> dict[str, Any]:
        """Return the KV heads of a converted model, where its config was changed."""
        return {"heads": found_heads(model, changed)}

    def options(self) -> Mapping[str, object]:
        """Return what was asked for."""
        return {"heads": self.heads}

    def suffix(self) -> str:
        """Return `mha`, or `kv8`."""
        return "mha" if self.heads is None else f"kv{self.heads}"

    def host(self, original: Original) -> Original:
        """Return the original: a class that cannot have its KV heads repeated is refused."""
        return original

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original.

        Raises:
            GroupsError: The number is not a multiple of K that divides H.
            FamilyError: The family cannot be expanded.
            CheckpointError: The weights that would change are quantised.
        """
        model = original.architecture
        refuse_family(model.config_json)
        moves = [(one, one.decoder.query_heads if self.heads is None else self.heads) for one in model.counts]
        for count, heads in moves:
            if heads not in (possible := _possible_heads(count)):
                raise GroupsError(
                    f"{count.heads} KV heads cannot be repeated to {heads} "
                    f"(the model has {count.decoder.query_heads} query heads)",
                    expected=f"one of {', '.join(map(str, possible))}",
                )
        return aim_at_heads(original, moves, "rounding")


@dataclass(frozen=True)
class Restore(Expand):
    """The numbers of KV heads that another model of the same class has: a converted one in its original's shapes."""

    like: Architecture | None = None

    def aim(self, original: Original) -> Aim:
        """Return what becomes of a converted checkpoint."""
        if self.like is None:
            return super().aim(original)
        model, heads = original.architecture, {path: one.heads for one in self.like.counts for path in one.paths}
        if all(len({heads[path] for path in count.paths}) == 1 for count in model.counts):
            return aim_at_heads(original, [(count, heads[count.paths[0]]) for count in model.counts], "rounding")
        return aim_at_layers(original, heads_of(self.like))


def _possible_heads(count: Count) -> list[int]:
    family, queries = count.decoder.family, count.decoder.query_heads
    possible = [heads for heads in divisors(queries // family.widest) if heads % count.heads == 0]
    return [heads for heads in possible if not family.switch or heads in (1, queries)]
