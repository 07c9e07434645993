"""A sliding window: each token sees itself and the W - 1 before it, in all layers or in some. No tensor changes.

The cache of such a layer keeps W entries (W - 1 in transformers' dynamic cache), however long the text. The classes
that have windows are `hosts/windows.py`'s, which is imported when a window is asked for.

Legend: W tokens of the window, L layers.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from mha2gqa.errors import FamilyError, GroupsError
from mha2gqa.families.counts import refuse_family
from mha2gqa.files.pieces import whole
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.target import Aim, Change, Fact, Pieces

_MOST_LAYERS = 10_000
_IGNORED = (
    "What is not said to be run was read in their sources. "
    "An engine that ignores the window answers as the model without it, and saves nothing by it."
)


@dataclass(frozen=True)
class Window:
    """W tokens in reach instead of all."""

    tokens: int
    """W, at least 2."""
    layers: tuple[int, ...] | None = None
    """Numbers of the layers that have it, from 0 on; None is all of them."""

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> "Window":
        """Return the target of a record's options."""
        layers = options.get("window-layers")
        return cls(int(options["window"]), None if layers is None else parse_layers(layers))

    @classmethod
    def parse_change(cls, content: Mapping[str, Any]) -> Change:
        """Return what a record says that changed."""
        counts = [content.get(f"{side}_windowed_layers") for side in ("source", "target")]
        layers = None if None in counts else [int(count or 0) for count in counts]
        return _change(content["source_window"], content["target_window"], layers)

    @classmethod
    def found(cls, model: Architecture, changed: AbstractSet[tuple[str, ...]]) -> dict[str, Any]:
        """Return the window of a converted model."""
        return {"window": next((window for window in windows(model) if window), None)}

    def options(self) -> Mapping[str, object]:
        """Return what was asked for."""
        return {"window": self.tokens} | ({} if self.layers is None else {"window-layers": write_layers(self.layers)})

    def suffix(self) -> str:
        """Return `w4096`, or `w4096x12` for twelve layers."""
        return f"w{self.tokens}" if self.layers is None else f"w{self.tokens}x{len(self.layers)}"

    def host(self, original: Original) -> Original:
        """Return the original in a class that can have the window.

        Raises:
            FamilyError: There is none.
            GroupsError: There is no such layer, or the window is not shorter than what there is.
            CheckpointError: The weights are quantised, or do not fit the config.
        """
        from mha2gqa.hosts.rehost import written_as
        from mha2gqa.hosts.windows import find_host

        model = original.architecture
        refuse_family(model.config_json)
        if before := windows(model):
            self._check_bounds(model, before)
        found = find_host(model, by_layer=self._is_partial(model))
        if found is None:
            return original
        refuse_quantised(model.config_json)
        hosted = written_as(original, *found)
        if lost := [info.name for info in hosted.origin.dropped if info.name in original.spelling(model.blueprint)]:
            raise FamilyError(f"{found[0].model_type} has no place for tensor {lost[0]!r} of {original.name}")
        return hosted

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original in a class that has windows.

        Raises:
            GroupsError: There is no such layer, or the window is not shorter than what there is.
            FamilyError: The layers would need two windows.
        """
        from mha2gqa.hosts.windows import CLASSES

        model, before = original.architecture, windows(original.architecture)
        self._check(model, before)
        has = [self.has(number) or window is not None for number, window in enumerate(before)]
        windowed = CLASSES[model.model_type]
        keys = windowed.keys(model.config, self.tokens, has)
        held = [window for window in before if window]
        counts = [len(held), sum(has)] if self._is_partial(model) or 0 < len(held) < len(before) else None
        return Aim(
            original=original,
            result=Architecture({**original.config_json, **keys}),
            change=_change(held[0] if held else None, self.tokens, counts),
            notes=(f"{windowed.engines} {_IGNORED}",),
            pieces=lambda layers: Pieces(tuple(whole(info) for info in original.tensors)),
        )

    def has(self, number: int) -> bool:
        """Return whether a layer gets the window; one that has it already keeps it."""
        return self.layers is None or number in self.layers

    def _is_partial(self, model: Architecture) -> bool:
        count = int(model.text_config.num_hidden_layers)
        return self.layers is not None and not set(range(count)) <= {*self.layers}

    def _check_bounds(self, model: Architecture, before: list[int | None]) -> None:
        """Refuse windows that bound nothing, and layers that are not there."""
        if self.layers and (beyond := [number for number in self.layers if number >= len(before)]):
            raise GroupsError(
                f"--window-layers names layer {beyond[0]}", expected=f"numbers from 0 to {len(before) - 1}"
            )
        reach = min([_reach(model), *(window for window in before if window)])
        if self.tokens > reach:
            raise GroupsError(
                f"--window {self.tokens} is above the {reach:,} tokens that the model's layers see as it is",
                expected=f"2 to {reach}",
            )

    def _check(self, model: Architecture, before: list[int | None]) -> None:
        """Refuse the same, and two windows in one checkpoint."""
        self._check_bounds(model, before)
        left = [number for number, window in enumerate(before) if window and not self.has(number)]
        if left and before[left[0]] != self.tokens:
            raise FamilyError(
                f"Layer {left[0]} has a window of {before[left[0]]} tokens, and a checkpoint has one window for all "
                f"layers that have any, which would become {self.tokens}",
                expected=f"--window-layers with layer{'s' * (len(left) > 1)} {write_layers(tuple(left))} among them",
            )


def windows(model: Architecture) -> list[int | None]:
    """Return the window of each layer, first to last; one as long as the model reads is none."""
    reach = _reach(model)
    return [layer.window if layer.window and layer.window < reach else None for layer in model.cached]


def _reach(model: Architecture) -> int:
    return int(getattr(model.text_config, "max_position_embeddings", None) or 1 << 62)


def _change(before: int | None, after: int, layers: list[int] | None) -> Change:
    facts = [Fact(name="window", label="window", before=before, after=after)]
    if layers is not None:
        facts.append(Fact(name="windowed_layers", label="layers with a window", before=layers[0], after=layers[1]))
    return Change(
        facts=tuple(facts),
        effect="loss",
        tags=("sliding-window",),
        made="Attention sees a window of the last tokens",
        lacks="has no window of this kind",
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """Return the numbers of `0-11,14`, in order.

    Raises:
        ValueError: The text is no such list.
    """
    numbers: set[int] = set()
    for part in filter(None, (one.strip() for one in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"{part!r} is no number of a layer, and no range of them such as 0-11")
        if int(last or first) >= _MOST_LAYERS:  # a record may say any number
            raise ValueError(f"{part!r} names layers that no model has")
        numbers.update(range(int(first), int(last or first) + 1))
    if not numbers:
        raise ValueError(f"{text!r} names no layer")
    return tuple(sorted(numbers))


def write_layers(layers: tuple[int, ...]) -> str:
    """Return numbers as `parse_layers` reads them."""
    there = {*layers}
    starts = [number for number in layers if number - 1 not in there]
    ends = [number for number in layers if number + 1 not in there]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
