"""Carries a sweep out: one step after the other, the results written after each.

A step is one conversion and its measurement, or the single layers of one method. Checkpoints lie in a workspace beside
the results until they are measured, and go, unless they are to be kept; what an interrupted conversion has finished
stays there for the next run. How a conversion is made is handed in.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from mha2gqa.errors import Interrupted, Mha2GqaError, OutputError, going_on
from mha2gqa.files.reader import Checkpoint, read_checkpoint
from mha2gqa.files.source import Source, find_source
from mha2gqa.files.staging import move, tidy, workspace
from mha2gqa.files.working import remove
from mha2gqa.hosts import rehost
from mha2gqa.model.load import attention_modules, load_rehosted
from mha2gqa.targets.output import Request, carry_out
from mha2gqa.targets.plan import plan_restore
from mha2gqa.targets.report import ChangeReport
from mha2gqa.verbs.sweep.measuring import Yardstick, single_layers
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.outcome import LayerPoint, Point, Sweep
from mha2gqa.verbs.sweep.store import write_results
from mha2gqa.verbs.sweep.texts import Texts, find_texts
from mha2gqa.verbs.sweep.ways import Way, command_line, convert_options
from mha2gqa.verbs.verify.options import VerifyOptions

Convert = Callable[..., ChangeReport]
"""`convert` of the commands: options, progress of writing, `stages` of everything else."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how far a sweep is."""

    step: Callable[[str, int, int], object] = lambda name, number, total: None
    """Told what is begun, how many steps are done, and how many there are."""
    stage: Callable[[str, int, int], object] = lambda stage, size, total: None
    """Told how much of a part of the step was done since the last call, and how much of it there is."""
    point: Callable[[Point], object] = lambda point: None
    """Told of each conversion that was measured."""


class Run:
    """One run of a sweep: the text and the original are found and loaded once, when they are first needed."""

    def __init__(
        self,
        options: SweepOptions,
        source: Source,
        checkpoint: Checkpoint,
        output: Path,
        convert: Convert,
        watch: Watch,
    ) -> None:
        self._options, self._source, self._checkpoint = options, source, checkpoint
        self._output, self._convert_command, self._watch = output, convert, watch

    def go(self, ways: Sequence[Way], results: Sweep) -> Sweep:
        """Take every step that the results lack, and write them after each.

        Args:
            ways: What is to be measured.
            results: What an earlier run has measured.

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
        is_new_text = not self._text_directory.exists()
        stamp = hashlib.sha256(json.dumps(results.settings).encode()).hexdigest()
        try:
            with workspace(self._output, stamp, keep=True) as work:
                yardstick = self._yardstick
                results = replace(results, text=yardstick.text, dtype=yardstick.dtype, device=yardstick.device)
                for number, (name, take) in enumerate(steps):
                    self._watch.step(name, number, len(steps))
                    results = results.extended(take(work))
                    write_results(self._output, results)
                    self._put_away(work / name)
                self._watch.step("", len(steps), len(steps))
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

    def _missing(
        self, ways: Sequence[Way], results: Sweep
    ) -> list[tuple[str, Callable[[Path], Sequence[Point] | Sequence[LayerPoint]]]]:
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
        least = min(way.groups for way in ways)
        known = {layer.method for layer in results.layers if layer.groups == least}
        methods = dict.fromkeys(way.method for way in ways if way.method not in known)
        alone = [Way(groups=least, method=method, refine=None) for method in methods if self._options.sensitivity]
        return [
            *((name, partial(self._point, way)) for name, way in points.items()),
            *((f"single layers, {way.method}", partial(self._layers, way)) for way in alone),
        ]

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
        return Yardstick(self._source, self._checkpoint.config, asked)

    def _convert(self, way: Way, work: Path) -> tuple[Path, ChangeReport, str]:
        """Convert in one way; return where to, the report, and the command line that does the same."""
        output = work / way.name(self._source.name)
        if output.exists():  # of a run that was killed, and perhaps half removed
            shutil.rmtree(output)
        asked = convert_options(way, self._options, self._texts.calibration, self._texts.column, output)
        report = self._convert_command(asked, partial(self._watch.stage, "writing"), stages=self._watch.stage)
        return output, report, command_line(asked)

    def _point(self, way: Way, work: Path) -> list[Point]:
        """Convert in one way, and measure the result, which stays until the point is among the results."""
        started = time.monotonic()
        output, report, command = self._convert(way, work)
        seconds = time.monotonic() - started
        model = self._yardstick.load(output)
        measured = self._yardstick.measure(model, partial(self._watch.stage, "evaluation"))
        point = Point(
            name=output.name,
            groups=way.groups,
            method=way.method,
            refine=way.refine,
            cache=report.cache_after,
            measured=measured,
            seconds=seconds,
            command=command,
        )
        self._watch.point(point)
        return [point]

    def _layers(self, way: Way, work: Path) -> list[LayerPoint]:
        """Convert in one way, and measure the original with each attention module of the result alone."""
        output, _, _ = self._convert(way, work)
        expanded = work / f"{output.name}-restored"
        same_class = rehost(self._checkpoint, way.groups)
        restore(output, same_class, expanded)
        model, original = self._yardstick.load(expanded), self._yardstick.original
        if same_class.rehosted:
            original = load_rehosted(same_class, dtype=self._options.dtype, device=self._options.device)
        modules = attention_modules(same_class.config)
        advance = partial(self._watch.stage, "evaluation of single layers")
        measured = single_layers(
            self._yardstick, original, model, modules, lambda size, total: advance(size, total * len(modules))
        )
        points = [
            LayerPoint(module=module, groups=way.groups, method=way.method, measured=found)
            for module, found in measured
        ]
        shutil.rmtree(output)
        shutil.rmtree(expanded)
        return points


def restore(converted: Path, original: Checkpoint, output: Path) -> None:
    """Write a converted checkpoint with its KV heads repeated, in the shapes of its original; its outputs stay."""
    checkpoint = read_checkpoint(converted)
    request = Request(
        command="expand",
        options={},
        output=output,
        method="first",
        seed=0,
        max_shard_size=None,
        force=True,
        dry_run=False,
    )
    plan = plan_restore(checkpoint, original.config)
    carry_out(plan, find_source(str(converted)), checkpoint, request, lambda size, total: None)
