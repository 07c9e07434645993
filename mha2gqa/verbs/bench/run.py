"""`mha2gqa bench`: cache and speed of two models side by side, and how much faster their bytes allow.

Finds the two, refuses what does not fit, loads both, and lets them take turns at every point of the grid, so that both
meet the same disturbances. Which of them goes first changes from turn to turn; the first turn of each is not counted.
Every refusal that does not need the models is made before they are loaded.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from mha2gqa.pages.page import check_place, write_page
from mha2gqa.progress import QUIET, Progress
from mha2gqa.units import format_size, parse_size
from mha2gqa.verbs.bench.asked import check_engine
from mha2gqa.verbs.bench.attention import repeats_heads
from mha2gqa.verbs.bench.engines import GRAPHS, Engine, Running, check_encoder, open_engines
from mha2gqa.verbs.bench.grid import Grid, check_fits, find_grid, free_memory
from mha2gqa.verbs.bench.limits import Costs, Filled, costs, largest_that_runs, why_not_faster
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.outcome import BenchReport, Decode, Fit, Prefill, Ratio, Setting, Side, Times
from mha2gqa.verbs.bench.subjects import Subject, Subjects, find_subjects, read_to
from mha2gqa.verbs.bench.transformers_engine import TransformersEngine

Turn = Callable[[], list[float]]
_PACKAGES = ("mha2gqa", "torch", "transformers")
"""Without their versions no time means anything."""


def bench(options: BenchOptions, progress: Progress = QUIET) -> BenchReport:
    """Measure two models side by side.

    Args:
        options: Which two, at which points, by what.
        progress: Told of every point.

    Raises:
        Mha2GqaError: A model cannot be found, the grid does not fit, or the engine is not installed.
    """
    started = time.monotonic()
    kinds = check_engine(options)
    subjects = find_subjects(options)
    check_encoder(options, subjects)
    grid = find_grid(options, subjects, kinds)
    if options.report is not None:
        check_place(options.report)
    subjects = read_to(subjects, grid.longest) if subjects.random_weights else subjects
    first, second = (costs(one.model, subjects.dtype.itemsize) for one in subjects.both)
    free = free_memory(subjects.device)
    memory = parse_size(options.memory, "--memory") or free
    check_fits(grid, (first, second), free, shared=subjects.shares_weights)
    with progress.under_way("loading both models"):
        running = open_engines(options, subjects, grid)
    report = BenchReport(
        model_type=str(subjects.original.model.config_json.get("model_type")),
        random_weights=subjects.random_weights,
        target_context=grid.target,
        original=_side(subjects.original, first),
        converted=_side(subjects.converted, second),
        setting=_setting(options, subjects, running, memory),
        prefill=tuple(_prefill(options, running, grid, progress)),
        decode=tuple(_decode(options, subjects, running, grid, (first, second), progress)),
        fits=tuple(_fits(running, subjects, grid, (first, second), memory)),
        seconds=time.monotonic() - started,
    )
    if options.report is not None:
        from mha2gqa.verbs.bench.page import bench_page

        write_page(options.report, bench_page(report))
    return report


def _side(subject: Subject, cost: Costs) -> Side:
    return Side(
        name=subject.name,
        kv_heads=0 if subject.model.is_latent else subject.counted.kv_heads,
        parameters=cost.parameters,
        weights=cost.weights,
        cache_per_token=cost.cache(Filled(1)),
        cross_cache_per_token=cost.cache(Filled(0, 1)),
    )


def _setting(options: BenchOptions, subjects: Subjects, running: Running, memory: int) -> Setting:
    return Setting(
        engine=options.engine,
        device=device_name(subjects.device),
        dtype=str(subjects.dtype).removeprefix("torch."),
        attention=running.attention,
        compiled=running.compiled,
        threads=torch.get_num_threads(),
        machine=machine(),
        versions=versions(*running.packages),
        memory=memory,
    )


def _prefill(options: BenchOptions, running: Running, grid: Grid, progress: Progress) -> Iterator[Prefill]:
    for batch, tokens, chunk in grid.reads:
        yield time_prefill(running.engines, batch, tokens, options.turns, chunk)
        progress.stage("prefill", 1, len(grid.reads))


def _decode(
    options: BenchOptions,
    subjects: Subjects,
    running: Running,
    grid: Grid,
    sides: tuple[Costs, Costs],
    progress: Progress,
) -> Iterator[Decode]:
    for point in grid.points:
        repeats = repeats_heads(running.attention, masked=point[0] == "static", compiled=running.compiled)
        yield time_decode(
            running.engines,
            sides,
            point,
            room=grid.room,
            tokens=options.tokens,
            turns=options.turns,
            reason=partial(
                why_not_faster, original=sides[0], repeats=repeats, heads=subjects.original.model.query_heads
            ),
        )
        progress.stage("decode", 1, len(grid.points))


def _fits(running: Running, subjects: Subjects, grid: Grid, sides: tuple[Costs, Costs], memory: int) -> Iterator[Fit]:
    for filled in grid.filled:
        most = [side.largest_batch(filled, memory) for side in sides]
        tried = None
        if subjects.device.startswith(GRAPHS):
            tried = _tried(running, filled, most)
        yield Fit(context=filled.context, original=most[0], converted=most[1], tried=tried)


def _tried(running: Running, filled: Filled, most: list[int]) -> tuple[int, int] | None:
    """Return the largest batches that run on an accelerator beside the weights of both models."""
    found = []
    for engine, batch in zip(running.engines, most, strict=True):
        if not isinstance(engine, TransformersEngine):
            return None
        found.append(largest_that_runs(lambda size, run=engine.runs: run(size, filled), batch))  # type: ignore[misc]
    return found[0], found[1]


def machine() -> dict[str, str]:
    """Return processor, cores, memory and system of this machine."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": format_size(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that matter, and of `more` packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in (*_PACKAGES, *more)}


def device_name(device: str) -> str:
    """Return the name of the processor that `device` means."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return _processor() if device == "cpu" else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def take_turns(first: Turn, second: Turn, turns: int) -> tuple[Times, Times, Ratio]:
    """Return the times of both, and the ratio of first through second, turn by turn.

    Args:
        first: Returns the times of one turn.
        second: The other's.
        turns: How many turns of each count; one more comes before them.
    """
    both = (first, second)
    for turn in both:
        turn()
    times: tuple[list[float], list[float]] = ([], [])
    ratios = []
    for number in range(turns):
        medians = [0.0, 0.0]
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            seconds = both[index]()
            times[index].extend(seconds)
            medians[index] = Times.of(seconds).median
        ratios.append(medians[0] / medians[1])
    middle = Times.of(ratios).median
    return Times.of(times[0]), Times.of(times[1]), Ratio(median=middle, low=min(ratios), high=max(ratios))


def time_decode(
    engines: tuple[Engine, Engine],
    sides: tuple[Costs, Costs],
    point: tuple[str, int, Filled],
    *,
    room: int,
    tokens: int,
    turns: int,
    reason: Callable[[Decode], str],
) -> Decode:
    """Measure decoding at one point.

    Args:
        engines: Original and converted.
        sides: Their bytes.
        point: Kind of cache, batch, and what its caches hold when decoding begins.
        room: Tokens that a cache needs beyond that.
        tokens: Steps of a turn.
        turns: Turns of each that count.
        reason: Returns why a row is not faster, as `why_not_faster`.
    """
    kind, batch, filled = point
    first, second = (engine.start(batch, filled, kind, room) for engine in engines)
    held = filled.with_room(room if kind == "static" else 0)
    original, converted, ratio = take_turns(lambda: first.turn(tokens), lambda: second.turn(tokens), turns)
    row = Decode(
        batch=batch,
        context=filled.context,
        cache=kind,
        original=original,
        converted=converted,
        ratio=ratio,
        step_bytes=(sides[0].step(batch, filled), sides[1].step(batch, filled)),
        cache_bytes=(batch * sides[0].cache(held), batch * sides[1].cache(held)),
        cache_measured=(first.cache_bytes, second.cache_bytes),
    )
    return replace(row, reason=reason(row))


def time_prefill(
    engines: tuple[Engine, Engine], batch: int, tokens: int, turns: int, chunk: int | None = None
) -> Prefill:
    """Measure reading a batch of prompts, or of sources, of `tokens` tokens; `chunk` of them at a time."""
    first, second = engines
    original, converted, ratio = take_turns(
        lambda: [first.prefill(batch, tokens, chunk)], lambda: [second.prefill(batch, tokens, chunk)], turns
    )
    peak = (first.peak(batch, tokens, chunk), second.peak(batch, tokens, chunk))
    return Prefill(
        batch=batch, tokens=tokens, chunk=chunk, original=original, converted=converted, ratio=ratio, peak=peak
    )
