"""Carries a sweep out: one step after the other, the results written after each.

A step is one conversion and its measurement, or the single layers of one method, each of which is a result. Checkpoints
lie in a workspace beside the results until they are measured, and go, unless they are to be kept; what an interrupted
conversion has finished stays there for the next run.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

from mha2gqa.errors import Interrupted, Mha2GqaError, OutputError, going_on
from mha2gqa.families.cache import cache_bytes
from mha2gqa.files.staging import move, tidy, workspace
from mha2gqa.files.working import remove
from mha2gqa.hosts import counted
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.load import load_original
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.record.conversion import Outcome
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.verbs.convert.again import command_of
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.sweep.measuring import Yardstick, restore, single_layers
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.outcome import LayerPoint, Point, Sweep
from mha2gqa.verbs.sweep.store import write_results
from mha2gqa.verbs.sweep.texts import Texts, find_texts
from mha2gqa.verbs.sweep.ways import Way, convert_options
from mha2gqa.verbs.verify.options import VerifyOptions

Step: TypeAlias = Callable[[Path], Iterator[Point | LayerPoint]]
"""Takes the workspace, and gives each result as soon as it is there."""

_ALONE = "single layers"
"""With which the names of steps begin that measure them."""


class Run:
    """One run of a sweep: the text and the original are found and loaded once, when they are first needed."""

    def __init__(self, options: SweepOptions, original: Original, output: Path, progress: Progress) -> None:
        self._options, self._source, self._original = options, original.source, original
        self._output, self._progress = output, progress

    def go(self, ways: Sequence[Way], results: Sweep, cache: int) -> Sweep:
        """Take every step that the results lack, and write them after each measurement.

        Args:
            ways: What is to be measured.
            results: What an earlier run has measured.
            cache: Bytes of cache a token of the original, while no window is full.

        Returns:
            The results, complete.

        Raises:
            OutputError: A checkpoint that is to be kept would replace another, or the disk is full.
            Interrupted: By Ctrl-C; the results stay.
        """
        steps = self._missing(ways, results)
        if not steps:
            tidy(self._output)
            return results
        alone = sum(name.startswith(_ALONE) for name, _ in steps)
        told = {"points": len(steps) - alone, "alone": alone, "output": str(self._output)}
        told |= {"known": len(results.points), "known_alone": len(results.layers)}
        self._progress.event({"kind": "plan", **told})
        is_new_text = not self._text_directory.exists()
        stamp = hashlib.sha256(json.dumps(results.settings).encode()).hexdigest()
        try:
            with workspace(self._output, stamp, keep=True) as work:
                yardstick = self._yardstick
                results = replace(results, text=yardstick.text, dtype=yardstick.dtype, device=yardstick.device)
                results = replace(results, cache=self._cache(self._original.architecture, cache))
                for number, (name, take) in enumerate(steps):
                    self._progress.step(name, number, len(steps))
                    for found in take(work):
                        results = results.extended(found)
                        write_results(self._output, results)
                    self._put_away(work / name)
                self._progress.step("", len(steps), len(steps))
        except KeyboardInterrupt as error:
            if results.points:
                raise Interrupted(going_on(self._output)) from error
            if is_new_text and not isinstance(error, Interrupted):
                self._remove_text()
            raise
        return results

    def _put_away(self, made: Path) -> None:
        """Keep or remove the checkpoint of a point, once that is among the results."""
        if not made.exists():
            return
        if self._options.keep is not None:
            move(made, self._options.keep / made.name)
        else:
            shutil.rmtree(made)

    def _missing(self, ways: Sequence[Way], results: Sweep) -> list[tuple[str, Step]]:
        """Return the steps that the results lack, by name: the points, then the single layers of each method."""
        keep, names = self._options.keep, {point.name for point in results.points}
        called = {way.name(self._source.name): way for way in ways}
        points = {
            name: way
            for name, way in called.items()
            if name not in names or (keep and not os.path.lexists(keep / name))
        }
        if keep and (there := [keep / name for name in points if os.path.lexists(keep / name)]):
            raise OutputError(
                f"{there[0]} exists, and is not among the results that the sweep goes on from",
                expected="a directory without it",
                remedy="Choose another with --keep",
            )
        return [
            *((name, partial(self._point, way)) for name, way in points.items()),
            *self._single_layers(ways, results),
        ]

    def _single_layers(self, ways: Sequence[Way], results: Sweep) -> Iterator[tuple[str, Step]]:
        """Yield a step for each method of which not all layers have been measured alone."""
        # A latent has no heads that could be repeated, so that a layer of the original may take its place.
        uniform = [way for way in ways if way.is_uniform and self._options.sensitivity]
        least = min((way.groups for way in uniform if way.groups), default=None)
        if least is None:
            return
        same_class = KvHeads(least).host(self._original)
        known = {(layer.method, layer.module) for layer in results.layers if layer.groups == least}
        for method in dict.fromkeys(way.method for way in uniform):
            rest = [name for name in same_class.architecture.attention_modules if (method, name) not in known]
            if rest:
                way = Way(groups=least, method=method)
                yield f"{_ALONE}, {method}", partial(self._layers, way, least, same_class, rest)

    @property
    def _text_directory(self) -> Path:
        return self._output.with_name(f"{self._output.stem}-text")

    @cached_property
    def _texts(self) -> Texts:
        return find_texts(self._options, self._source, self._text_directory)

    @cached_property
    def _yardstick(self) -> Yardstick:
        is_new = not self._text_directory.exists()
        try:
            return self._load_yardstick(self._texts)
        except Mha2GqaError:
            if is_new:
                self._remove_text()
            raise

    def _remove_text(self) -> None:
        if self._text_directory.exists():
            remove(self._text_directory)

    def _load_yardstick(self, texts: Texts) -> Yardstick:
        options = self._options
        asked = VerifyOptions(
            data=texts.evaluation,
            column=texts.column,
            tokens=options.eval_tokens,
            context=options.context,
            batch_size=options.batch_size,
            dtype=options.dtype,
            device=options.device,
            seed=texts.seed,
        )
        return Yardstick(self._original, asked, self._progress)

    def _convert(self, way: Way, work: Path) -> tuple[Path, Outcome, str]:
        """Convert in one way; return where to, the report, and the command line that does the same."""
        output = work / way.name(self._source.name)
        if output.exists():  # of a run that was killed, and perhaps half removed
            shutil.rmtree(output)
        asked = convert_options(way, self._options, self._texts.calibration, self._texts.column, output)
        report = convert(asked, self._progress)
        return output, report, command_of(replace(asked, output=None))

    def _point(self, way: Way, work: Path) -> Iterator[Point]:
        """Convert in one way, and measure the result, which stays until the point is among the results."""
        started = time.monotonic()
        output, report, command = self._convert(way, work)
        seconds = time.monotonic() - started
        model = self._yardstick.load(output)
        measured = self._yardstick.measure(model, self._progress.part("evaluation"))
        facts = {fact.name: fact.after for fact in report.change.facts}
        layered = isinstance(facts.get("heads"), str)
        point = Point(
            name=output.name,
            groups=way.groups or (None if layered else facts.get("heads", self._original.architecture.kv_heads)),
            by_layer=facts["heads"] if layered else "",
            window=_window(facts),
            method=way.method,
            refine=way.refine,
            cache=self._cache(Original.at(output).architecture, report.cache_after),
            measured=measured,
            seconds=seconds,
            command=command,
        )
        loss = measured.loss
        told = {"loss": loss.converted, "difference": loss.difference, "increase": loss.increase}
        self._progress.event({"kind": "point", "name": point.name, **told})
        yield point

    def _cache(self, model: Architecture, cache: int) -> int:
        """Return the bytes of cache a token of a text as long as is evaluated on; `cache` is that of one alone."""
        context, layers = self._yardstick.text.context, counted(model).cached
        return round(cache * cache_bytes(layers, 1, context) / max(1, context * cache_bytes(layers, 1)))

    def _layers(
        self, way: Way, groups: int, same_class: Original, rest: Sequence[str], work: Path
    ) -> Iterator[LayerPoint]:
        """Convert in one way, and measure the original with one attention module of the result alone.

        Args:
            way: How to convert.
            groups: KV heads of the result.
            same_class: The original, in the class of the result.
            rest: The modules that are not among the results.
            work: Where the checkpoints lie meanwhile.
        """
        output, _, _ = self._convert(way, work)
        expanded = work / f"{output.name}-restored"
        restore(output, same_class.architecture, expanded)
        model, original = self._yardstick.load(expanded), self._yardstick.original
        if not same_class.origin.is_own:
            original = load_original(same_class, dtype=self._options.dtype, device=self._options.device)
        modules = same_class.architecture.attention_modules
        advance = self._progress.part("evaluation of single layers")
        for module, measured in single_layers(self._yardstick, original, model, modules, advance, only=rest):
            yield LayerPoint(module=module, groups=groups, method=way.method, measured=measured)
        shutil.rmtree(output)
        shutil.rmtree(expanded)


def _window(facts: Mapping[str, Any]) -> str:
    """Return the window of a conversion's facts as a phrase; empty where it gives none."""
    layers = facts.get("windowed_layers")
    return f"{facts['window']}{f' on {layers} layers' if layers else ''}" if "window" in facts else ""
