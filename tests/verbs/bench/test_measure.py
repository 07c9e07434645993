"""Taking turns, the grid and what it refuses: with engines that count instead of running."""

import dataclasses
from typing import Any

import pytest

from mha2gqa.errors import GroupsError, TimingError
from mha2gqa.verbs.bench.asked import SHAPES
from mha2gqa.verbs.bench.grid import Grid, check_fits, find_grid
from mha2gqa.verbs.bench.limits import Filled, costs
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.run import take_turns, time_decode, time_prefill
from mha2gqa.verbs.bench.subjects import find_subjects

TINY = BenchOptions(shape="olmo-1b", groups=2)


class Counted:
    """A model whose step takes as many seconds as there are digits in `log`, and that notes whose turn it is."""

    cache_bytes: int | None = None

    def __init__(self, name: str, step: float, log: list[str]) -> None:
        self.name, self.step, self.log = name, step, log
        self.asked: list[tuple[Any, ...]] = []

    def prefill(self, batch: int, tokens: int, chunk: int | None = None) -> float:
        self.log.append(self.name)
        return self.step * batch * tokens

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        return None

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "Counted":
        self.asked.append((batch, filled, kind, room))
        return self

    def turn(self, tokens: int) -> list[float]:
        self.log.append(self.name)
        return [self.step] * tokens


def test_both_take_turns_and_the_first_ones_do_not_count() -> None:
    log: list[str] = []
    times = iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def turn(name: str) -> list[float]:
        log.append(name)
        return [next(times)]

    first, second, ratio = take_turns(lambda: turn("a"), lambda: turn("b"), 3)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"
    assert (first.count, second.count) == (3, 3)
    assert (first.median, second.median) == (4.0, 3.0)  # a: 1, 4, 5; b: 2, 3, 6
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 5 / 6, 4 / 3)


def test_a_row_says_what_was_measured_and_what_the_bytes_are() -> None:
    subjects = find_subjects(TINY)
    sides = tuple(costs(one.model, 4) for one in subjects.both)
    log: list[str] = []
    engines = (Counted("a", 0.3, log), Counted("b", 0.1, log))
    settings: dict[str, Any] = {"room": 10, "tokens": 4, "turns": 2, "reason": lambda row: f"limit {row.limit:.3f}"}
    row = time_decode(engines, (sides[0], sides[1]), ("static", 8, Filled(1024)), **settings)
    assert engines[0].asked == engines[1].asked == [(8, Filled(1024), "static", 10)]
    assert (row.original.median, row.original.count, row.ratio.median) == (0.3, 8, pytest.approx(3.0))
    assert row.step_bytes == tuple(side.read + 8 * side.cache(Filled(1024)) for side in sides)
    assert row.cache_bytes == tuple(8 * side.cache(Filled(1034)) for side in sides)
    assert row.reason == f"limit {row.step_bytes[0] / row.step_bytes[1]:.3f}"
    slow = (Counted("a", 0.1, log), Counted("b", 0.1, log))
    dynamic = time_decode(slow, (sides[0], sides[1]), ("dynamic", 1, Filled(16)), **settings)
    assert dynamic.cache_bytes == tuple(side.cache(Filled(16)) for side in sides)


def test_prefill_counts_the_tokens_of_the_batch() -> None:
    log: list[str] = []
    row = time_prefill((Counted("a", 0.2, log), Counted("b", 0.1, log)), 4, 5, 2)
    assert row.rates == (pytest.approx(5.0), pytest.approx(10.0))
    assert log == ["a", "b"] * 2 + ["b", "a"]


def test_the_grid_of_a_shape_is_what_was_asked_for() -> None:
    options = dataclasses.replace(TINY, batch=(8, 1, 8), context=(64, 16), prefill_tokens=32, tokens=3, turns=2)
    grid = find_grid(options, find_subjects(options), ("dynamic", "static"))
    assert grid.points[:3] == [("dynamic", 1, Filled(16)), ("static", 1, Filled(16)), ("dynamic", 8, Filled(16))]
    assert len(grid.points) == 8
    assert grid.room == 3 * 4 + 1
    assert grid.prompts == ((1, 16), (1, 32), (8, 4))


def test_a_grid_that_does_not_fit_is_refused_with_its_bytes() -> None:
    sides = tuple(costs(one.model, 4) for one in find_subjects(TINY).both)
    grid = Grid((1, 8), (1024, 4096), ("static",), 10, ())
    weights, caches = sides[0].weights, sum(8 * side.cache(Filled(4106)) for side in sides)
    check_fits(grid, (sides[0], sides[1]), weights + caches, shared=True)
    with pytest.raises(TimingError, match=r"Batch 8 at context 4096 does not fit: 4.4 GiB of weights and 8.0 GiB and"):
        check_fits(grid, (sides[0], sides[1]), weights + caches - 1, shared=True)
    with pytest.raises(TimingError, match=r"8.3 GiB of weights"):
        check_fits(grid, (sides[0], sides[1]), weights + caches, shared=False)


@pytest.mark.parametrize("path", sorted(SHAPES.glob("*.json")), ids=lambda path: path.stem)
def test_every_shape_can_be_benched(path: Any) -> None:
    subjects = find_subjects(BenchOptions(shape=path.stem, groups=1))
    before, after = (costs(one.model, 2).cache(Filled(1)) for one in subjects.both)
    assert subjects.random_weights
    assert before == after * subjects.original.counted.kv_heads
    same = find_subjects(BenchOptions(shape=str(path), groups=1))
    assert [one.model.config_json for one in same.both] == [one.model.config_json for one in subjects.both]


PARAMETERS = {  # as the models' own cards and papers give them
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "gemma-7b": 8_537_680_896,
    "smollm2-1.7b": 1_711_376_384,
    "phi-3-mini": 3_821_079_552,
    "olmo-1b": 1_176_764_416,
    "qwen1.5-0.5b": 463_987_712,
    "t5-large": 737_668_096,
}


def test_shapes_are_those_of_the_models_that_they_are_named_for() -> None:
    assert {path.stem for path in SHAPES.glob("*.json")} == PARAMETERS.keys()
    for name, parameters in PARAMETERS.items():
        subjects = find_subjects(BenchOptions(shape=name, groups=1))
        assert costs(subjects.original.model, 2).parameters == parameters, name


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (BenchOptions(shape="llama-9", groups=1), TimingError, "There is no shape 'llama-9'.*llama-2-7b"),
        (BenchOptions(shape="missing.json", groups=1), TimingError, "There is no shape 'missing.json'"),
        (BenchOptions(shape="../pyproject", groups=1), TimingError, "There is no shape"),
        (BenchOptions(shape="olmo-1b"), TimingError, "--shape needs --groups"),
        (BenchOptions(shape="olmo-1b", groups=3), GroupsError, "3"),
        (BenchOptions(shape="olmo-1b", groups=2, against="x"), TimingError, "takes the place of checkpoints"),
        (BenchOptions(groups=2), TimingError, "--groups, --latent and --rope-width belong to --shape"),
        (BenchOptions(shape="olmo-1b", groups=2, device="auto"), TimingError, "one device"),
    ],
)
def test_subjects_that_are_refused(options: BenchOptions, error: Any, says: str) -> None:
    with pytest.raises(error) as refused:
        find_subjects(options)
    assert [part for part in says.split(".*") if part not in str(refused.value)] == []
