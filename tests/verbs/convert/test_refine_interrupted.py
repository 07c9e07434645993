"""Conversions of whole layers that die: what is left, what the message says of it, and that the next run goes on there.

Each run stands still at a moment (`test_crash.py`) and is killed or interrupted. The same command then must give the
bytes of an unbroken run without training again the layers that were finished.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.refine import refine
from mha2gqa.verbs.convert import layerwise
from tests.verbs.convert.test_crash import Child, Moment
from tests.verbs.verify.subjects import save_source, save_text

DISTIL = ("--method", "aligned", "--refine", "distil", "--data", "text.txt", "--steps", "3")
JOINT = (*DISTIL[:3], "joint", *DISTIL[4:])
WEIGHTS = "mha2gqa.model.layers.write_tensors"
MOMENTS = {
    "in the second layer": (DISTIL, Moment("mha2gqa.refine.refine.refit_values", 2), 1),
    "before the second layer is written": (DISTIL, Moment(WEIGHTS, 2), 1),
    "after the last layer is written": (DISTIL, Moment(WEIGHTS, 2, after=True), 0),
    "before the output is written": (DISTIL, Moment("os.pwrite"), 0),
    "in the middle of the output": (DISTIL, Moment("os.pwrite", 9), 0),
    "before training together": (JOINT, Moment("mha2gqa.verbs.convert.layerwise.train_jointly"), 0),
    "between layers that were trained together": (JOINT, Moment(WEIGHTS, 4), 0),
    "after training together": (JOINT, Moment(WEIGHTS, 4, after=True), 0),
}
"""Options, where the run ends, and how many layers the next run has to refine."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source and its text."""
    directory = tmp_path_factory.mktemp("whole")
    save_source(directory / "source")
    save_text(directory / "text.txt", 2000)
    return directory


@pytest.fixture
def work(whole: Path, tmp_path: Path) -> Path:
    """Source and text, copied with their times, in the working directory."""
    shutil.copytree(whole / "source", tmp_path / "source")
    shutil.copy2(whole / "text.txt", tmp_path)
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process refines: a layer each, or trains: all together."""
    done: list[str] = []

    def counted(name: str, train: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (done.append(name), train(*args))[1]

    monkeypatch.setattr(refine, "refit_values", counted("layer", refine.refit_values))  # once a layer
    monkeypatch.setattr(layerwise, "train_jointly", counted("together", layerwise.train_jointly))
    return done


def request(options: tuple[str, ...], output: str = "out") -> tuple[str, ...]:
    return ("convert", "source", "-g", "2", "-o", output, *options)


def ended(work: Path, moment: Moment, number: signal.Signals, options: tuple[str, ...]) -> str:
    """Run until a moment, send a signal there, and return what was printed."""
    child = Child(work, moment, request(options))
    child.send(number)
    if number == signal.SIGINT:
        child.go_on()
    assert child.end() == (130 if number == signal.SIGINT else -number), child.log
    return child.log


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(("options", "moment", "left"), MOMENTS.values(), ids=MOMENTS)
def test_killed_and_run_again(
    work: Path, cli: Any, trained: list[str], options: tuple[str, ...], moment: Moment, left: int
) -> None:
    ended(work, moment, signal.SIGKILL, options)
    assert names(work) - {".out.partial"} == {"source", "text.txt", ".out.layers"}
    assert cli(*request(options)).code == 0
    assert trained.count("layer") == left
    is_done = moment == MOMENTS["after training together"][1]
    assert trained.count("together") == (options == JOINT and not is_done)
    assert cli(*request(options, "unbroken")).code == 0
    assert names(work) == {"source", "text.txt", "out", "unbroken"}
    assert same_result(work)


def same_result(work: Path) -> bool:
    """Whether both outputs hold the same weights, made with the same errors."""
    weights = [(work / name / "model.safetensors").read_bytes() for name in ("out", "unbroken")]
    records = [json.loads((work / name / "mha2gqa.json").read_text()) for name in ("out", "unbroken")]
    return weights[0] == weights[1] and records[0] == records[1]


def test_an_interruption_says_where_the_layers_stay(work: Path, cli: Any, trained: list[str]) -> None:
    log = ended(work, MOMENTS["in the second layer"][1], signal.SIGINT, DISTIL)
    stay = f"What was finished stays in {work / '.out.layers'}, and the same command goes on from there."
    assert f"error: Interrupted. {stay}" in log
    assert "nothing was left" not in log
    assert "Traceback" not in log
    assert names(work) == {"source", "text.txt", ".out.layers"}
    assert cli(*request(DISTIL)).code == 0
    assert trained == ["layer"]


@pytest.mark.parametrize(
    ("options", "moment"),
    [
        pytest.param(DISTIL, Moment("mha2gqa.refine.refine.distil", 1), id="in the first layer"),
        pytest.param(DISTIL, Moment("mha2gqa.verbs.convert.reading.find_blocks"), id="before there is text"),
        pytest.param(("--method", "aligned", "--data", "none"), Moment(WEIGHTS, 2), id="without data"),
        pytest.param(("--method", "aligned", *DISTIL[4:]), Moment(WEIGHTS, 2), id="statistics"),
    ],
)
def test_an_interruption_that_leaves_nothing_says_so(work: Path, options: tuple[str, ...], moment: Moment) -> None:
    log = ended(work, moment, signal.SIGINT, options)
    assert "error: Interrupted; nothing was left behind." in log
    assert names(work) == {"source", "text.txt"}


@pytest.mark.parametrize("change", ["steps", "text", "source"])
def test_what_was_made_of_something_else_is_made_again(work: Path, cli: Any, trained: list[str], change: str) -> None:
    ended(work, MOMENTS["after the last layer is written"][1], signal.SIGKILL, DISTIL)
    options = DISTIL
    if change == "steps":
        options = (*DISTIL[:-1], "4")
    elif change == "text":
        save_text(work / "text.txt", 2500)
    else:
        (work / "source/model.safetensors").touch()
    assert cli(*request(options)).code == 0
    assert trained == ["layer", "layer"]
    assert cli(*request(options, "unbroken")).code == 0
    assert same_result(work)


def test_two_at_once(work: Path, cli: Any) -> None:
    child = Child(work, MOMENTS["in the second layer"][1], request(DISTIL))
    second = cli(*request(DISTIL))
    assert second.code == 1
    assert "error: Another run is writing out" in second.err.splitlines()[-1]
    child.go_on()
    assert child.end() == 0, child.log
    assert names(work) == {"source", "text.txt", "out"}
