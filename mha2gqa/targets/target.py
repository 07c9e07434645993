"""What attention shall become: the form that every target has. NEW TARGET = ONE FILE + ONE LINE in `__init__.py`.

A `Target` is what was asked for (`KvHeads(4)`). Held against one original it gives an `Aim`: the architecture of the
result, what changes in words and numbers (`Fact`s), and the tensors that are made, as pieces of the original's. Plan,
record, outcome, card, page and verify carry the `Change` that follows from it and know no number of heads.

Targets compose (`Chain`): all but the last one must leave every tensor as it is, as a window does.

Legend: H query heads, K KV heads of the source, G KV heads of the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from mha2gqa.errors import FamilyError
from mha2gqa.files.pieces import LayerResult, OutputTensor
from mha2gqa.heads.grouping import Groups
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original

if TYPE_CHECKING:
    from mha2gqa.families.attention import AttentionLayer

Effect: TypeAlias = Literal["none", "rounding", "loss"]
"""What a change does to the model's outputs: nothing, the last digits, or more."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One number of attention, before and after."""

    name: str
    """In reports `<name>_before` and `<name>_after`, in the record `source_<name>` and `target_<name>`."""
    label: str
    """As people read it: `KV heads`."""
    before: Any
    after: Any

    @property
    def arrow(self) -> str:
        """As `8 -> 4`; what there was none of before, or stays, has one number."""
        return f"{self.before} -> {self.after}" if self._moves else str(self.after)

    @property
    def _moves(self) -> bool:
        return self.before not in (None, self.after)

    @property
    def instead(self) -> str:
        """As `4 KV heads instead of 8`, or `latent width 512`."""
        return f"{self.after} {self.label} instead of {self.before}" if self._moves else str(self)

    def __str__(self) -> str:
        """As `8 -> 4 KV heads`, or `latent width 512`."""
        return f"{self.arrow} {self.label}" if self._moves else f"{self.label} {self.after}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a conversion changes about attention, in words and numbers."""

    facts: tuple[Fact, ...]
    effect: Effect
    """Of the target on the outputs, where anything changes."""
    tags: tuple[str, ...] = ()
    """Of the result, on the Hub."""
    made: str = ""
    """How the result came about, as a sentence; empty where the method says it."""
    lacks: str = "knows only multi-head attention"
    """Why the result may be of another class than the original: what is wrong with that one."""

    @classmethod
    def joined(cls, changes: Sequence["Change"]) -> "Change":
        """Return several changes as one, whose effect is the largest of theirs."""
        if len(changes) == 1:
            return changes[0]
        order: tuple[Effect, ...] = ("none", "rounding", "loss")
        return cls(
            facts=tuple(fact for change in changes for fact in change.facts),
            effect=max((change.effect for change in changes if change.is_any), key=order.index, default="none"),
            tags=tuple(tag for change in changes for tag in change.tags),
            made=changes[0].made,
            lacks=changes[0].lacks,
        )

    @property
    def is_any(self) -> bool:
        """Whether anything is another than before."""
        return any(fact.before != fact.after for fact in self.facts)

    def numbers(self) -> dict[str, Any]:
        """Return the facts as reports name them."""
        sides = ("before", "after")
        return {f"{fact.name}_{side}": getattr(fact, side) for fact in self.facts for side in sides}

    def recorded(self) -> dict[str, Any]:
        """Return the facts as the record names them."""
        before = {f"source_{fact.name}": fact.before for fact in self.facts}
        return before | {f"target_{fact.name}": fact.after for fact in self.facts}

    def __str__(self) -> str:
        """Return the change as `8 -> 4 KV heads`."""
        return ", ".join(map(str, self.facts))


@dataclass(frozen=True)
class Pieces:
    """The tensors of a result."""

    tensors: tuple[OutputTensor, ...]
    """In the original's file order."""
    dropped: tuple[str, ...] = ()
    """The original's tensors that the result no longer has."""
    groups: Mapping[str, Groups] = field(default_factory=dict)
    """Attention module, as the file spells it -> which source heads each KV head of the result is made of."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A target held against one original."""

    original: Original
    """In the class that can express the result."""
    result: Architecture
    change: Change
    pieces: Callable[[Sequence[LayerResult]], Pieces]
    """Gives the tensors, for some attention layers that a method has changed as a whole, all others piece by piece."""
    notes: tuple[str, ...] = ()
    """What is to be known of the result, as sentences: which engines honour it."""
    layers: "Callable[[], list[AttentionLayer]]" = list
    """Gives the attention layers that change, first to last, as far as a method can change them as a whole."""


class Target(Protocol):
    """What attention shall become."""

    def options(self) -> Mapping[str, object]:
        """Return what was asked for, by the names on the command line; `TARGETS` make the target again of them."""

    def suffix(self) -> str:
        """Return what the name of the output ends in: `gqa4`."""

    def host(self, original: Original) -> Original:
        """Return the original in a class that can express the result; the same model, every output equal.

        Raises:
            FamilyError: There is none.
        """

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original that `host` gave.

        Raises:
            Mha2GqaError: It cannot; the message says what can.
        """


@dataclass(frozen=True)
class Chain:
    """Targets one after the other: the last one changes tensors, those before it only the config."""

    targets: tuple[Target, ...]

    def options(self) -> Mapping[str, object]:
        """Return those of all."""
        return {name: value for target in self.targets for name, value in target.options().items()}

    def suffix(self) -> str:
        """Return those of all."""
        return "-".join(target.suffix() for target in self.targets)

    def host(self, original: Original) -> Original:
        """Return the original in a class that can express all: first the one that the last needs, the pickiest."""
        for target in reversed(self.targets):
            original = target.host(original)
        return original

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original when each target begins with what the one before has made.

        Raises:
            FamilyError: A target that is not the last one would change tensors.
        """
        changes: list[Change] = []
        notes: tuple[str, ...] = ()
        at = original
        for number, target in enumerate(self.targets):
            aim = target.aim(at)
            if number < len(self.targets) - 1 and not all(tensor.is_copy for tensor in aim.pieces(()).tensors):
                raise FamilyError(f"{target.suffix()} cannot be combined with {self.targets[number + 1].suffix()} here")
            changes.append(aim.change)
            notes += aim.notes
            at = at.rewritten(aim.result)
        return replace(aim, original=original, change=Change.joined(changes), notes=notes)
