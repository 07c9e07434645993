"""What `sweep` returns: one point for each way to convert, the frontier of them, and the one to take.

Losses and divergences are in nats a token. Nothing is measured here (`measuring.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mha2gqa.verbs.verify.measures import ComparedText, Loss
from mha2gqa.verbs.verify.outcome import plain


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model beside its original, on the same tokens."""

    loss: Loss
    """Of both."""
    kl: float
    """Mean KL(original || model)."""
    top1: float
    """Share of tokens at which both find the same token most likely."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One conversion."""

    name: str
    """Of the checkpoint; unlike that of any other point."""
    groups: int | None
    """KV heads, G; None where each layer has its own number."""
    method: str
    """Empty where no heads were merged: a window alone."""
    refine: str | None
    cache: int
    """Bytes of KV cache a token, in the dtype of the weights; behind a window, of a text as long as was evaluated on,
    through its tokens."""
    measured: Measured
    seconds: float
    """Of the conversion."""
    command: str
    """The command line that makes it."""
    by_layer: str = ""
    """KV heads of each layer, as `2,2,4,8`, where they differ."""
    window: str = ""
    """Tokens of the window, and how many layers have it where not all do; empty without one."""

    @property
    def way(self) -> str:
        """Method, refinement and window, as a phrase."""
        return ", ".join(filter(None, (self.method, self.refine, self.window and f"window {self.window}")))

    @property
    def heads(self) -> str:
        """KV heads, as `4` or `2,2,4,8`."""
        return self.by_layer or str(self.groups)


@dataclass(frozen=True, kw_only=True)
class LayerPoint:
    """The original with one attention module converted."""

    module: str
    groups: int
    method: str
    measured: Measured


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The report of `sweep`."""

    name: str
    """Short name of the original, with which those of the points begin."""
    model: str
    """Hub id or directory."""
    model_type: str
    heads: int
    """KV heads of the original (the largest number, where layers differ)."""
    cache: int
    """Bytes of KV cache a token of the original, counted as those of the points."""
    max_ppl_increase: float
    """Limit of the recommended conversion, as a fraction."""
    text: ComparedText | None
    """What was evaluated on; None before anything was."""
    dtype: str
    """In which the models were run."""
    device: str
    points: Sequence[Point]
    layers: Sequence[LayerPoint]
    settings: Mapping[str, Any]
    """What the numbers depend on; a later run with the same settings goes on from these."""

    def extended(self, found: Point | LayerPoint) -> "Sweep":
        """Return the report with what was measured next; what is there already is replaced."""
        if isinstance(found, Point):
            points = {one.name: one for one in (*self.points, found)}
            return replace(self, points=list(points.values()))
        layers = {(one.method, one.groups, one.module): one for one in (*self.layers, found)}
        return replace(self, layers=list(layers.values()))

    @cached_property
    def frontier(self) -> list[Point]:
        """The points that no other one beats in both cache and loss, the largest cache first."""
        kept: list[Point] = []
        for point in sorted(self._finite, key=lambda one: (one.cache, one.measured.loss.converted, one.seconds)):
            if not kept or point.measured.loss.converted < kept[-1].measured.loss.converted:
                kept.append(point)
        return kept[::-1]

    @property
    def recommended(self) -> Point | None:
        """The smallest cache within the limit, of equal ones that with the least loss; None where none is within."""
        within = [one for one in self.points if one.measured.loss.increase <= self.max_ppl_increase]
        return min(within, key=lambda one: (one.cache, one.measured.loss.converted), default=None)

    @property
    def nearest(self) -> Point | None:
        """The point with the least loss: what comes nearest to a limit that none keeps."""
        return min(self._finite, key=lambda one: one.measured.loss.converted, default=None)

    @property
    def _finite(self) -> list[Point]:
        return [one for one in self.points if math.isfinite(one.measured.loss.converted)]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, with what follows from the points."""
        chosen = self.recommended
        derived = {"recommended": chosen and chosen.name, "frontier": [point.name for point in self.frontier]}
        content: dict[str, Any] = plain(asdict(self) | derived)
        losses = [one.measured.loss for one in self.points] + [one.measured.loss for one in self.layers]
        for entry, loss in zip((*content["points"], *content["layers"]), losses, strict=True):
            entry["measured"]["loss"] |= plain({"difference": loss.difference, "increase": loss.increase})
        return content


def parse(content: Mapping[str, Any]) -> Sweep:
    """Return the report that `to_json` gave.

    Raises:
        KeyError, TypeError: It is none.
    """
    names = Sweep.__dataclass_fields__
    fields = {name: content[name] for name in names}
    fields["text"] = ComparedText(**content["text"]) if content["text"] else None
    fields["points"] = [Point(**one | {"measured": _measured(one["measured"])}) for one in content["points"]]
    fields["layers"] = [LayerPoint(**one | {"measured": _measured(one["measured"])}) for one in content["layers"]]
    return Sweep(**fields)


def _measured(content: Mapping[str, Any]) -> Measured:
    loss = content["loss"]
    interval = loss["interval"]
    original, converted = (math.nan if loss[name] is None else loss[name] for name in ("original", "converted"))
    both = Loss(original=original, converted=converted, interval=interval and tuple(interval))
    return Measured(loss=both, kl=content["kl"], top1=content["top1"])
