"""Sweeps that die: whatever the moment, the same command goes on, and ends with what an unbroken one has.

Each run stands still at a moment (`tests/verbs/convert/test_crash.py`) and is killed or interrupted there.
"""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.convert.test_crash import Child, Moment
from tests.verbs.verify.subjects import save_source, save_text

SIZE = ("--context", "24", "--tokens", "600", "--eval-tokens", "240", "--sensitivity")
SWEEP = ("sweep", "source", "-g", "2,1", "--methods", "mean", "-o", "s.json", "--eval-data", "held-out.txt", *SIZE)
DIVIDED = (*SWEEP[: SWEEP.index("--eval-data")], "--data", "text.txt", *SIZE)
ALONE = ("--no-sensitivity",)
KEPT = (*ALONE, "--keep", "kept")
STEPS = "mha2gqa.verbs.sweep.steps"
MOMENTS = {
    "before a point is written down": (ALONE, Moment(f"{STEPS}.write_results")),
    "before the last point is written down": (ALONE, Moment(f"{STEPS}.write_results", 2)),
    "after the last point is written down": (ALONE, Moment(f"{STEPS}.write_results", 2, after=True)),
    "while a measured point is removed": (ALONE, Moment("os.unlink", 2)),
    "while the last point is removed": (ALONE, Moment("os.rmdir", 2)),
    "before a point is kept": (KEPT, Moment(f"{STEPS}.move")),
    "after a point is kept": (KEPT, Moment(f"{STEPS}.move", after=True)),
    "before a kept point is written down": (KEPT, Moment(f"{STEPS}.write_results")),
    "while single layers are measured": ((), Moment(f"{STEPS}.single_layers")),
    "after a single layer is written down": ((), Moment(f"{STEPS}.write_results", 3, after=True)),
    "before single layers are restored": ((), Moment(f"{STEPS}.restore")),
}
"""Options, and where the run ends."""
RERUNS = {
    f"{name}, {'forced' if force else 'plain'}": (options, moment, force)
    for name, (options, moment) in MOMENTS.items()
    for force in ((), ("--force",))
    if not (force and moment.after)
}
"""The same, and how it is run again; one of the two is enough behind a moment that a forced run has in front."""


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("killed")
    save_source(directory / "source")
    save_text(directory / "text.txt", 1000)
    save_text(directory / "held-out.txt", 1000)
    return directory


@pytest.fixture
def work(_whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(_whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def ended(work: Path, moment: Moment, number: signal.Signals, *options: str) -> str:
    child = Child(work, moment, (*SWEEP, *options))
    child.send(number)
    if number == signal.SIGINT:
        child.go_on()
    assert child.end() == (130 if number == signal.SIGINT else -number), child.log
    return child.log


def results(path: Path) -> Any:
    content = json.loads(path.read_text())
    for point in content["points"]:
        point.pop("seconds")
    return [content[name] for name in ("points", "layers", "text", "recommended", "frontier")]


@pytest.fixture(scope="session")
def unbroken(_whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """Results with and without single layers, of runs that nothing happened to."""
    import contextlib
    import sys

    from mha2gqa.cli import main

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for options in ((), ALONE):
            directory = Path(shutil.copytree(_whole, tmp_path_factory.mktemp("unbroken") / "work"))
            patch.chdir(directory)
            patch.setattr(sys, "argv", ["mha2gqa", *SWEEP, *options, "--json"])
            with contextlib.suppress(SystemExit):
                main()
            found[not options] = results(directory / "s.json")
    return found


@pytest.mark.parametrize(("options", "moment", "force"), RERUNS.values(), ids=RERUNS)
def test_killed_and_run_again(
    work: Path, cli: Any, unbroken: dict[bool, Any], options: tuple[str, ...], moment: Moment, force: tuple[str, ...]
) -> None:
    ended(work, moment, signal.SIGKILL, *options)
    answer = cli(*SWEEP, *options, *force)
    assert answer.code == 0, answer.err
    assert results(work / "s.json") == unbroken[not options]
    kept = {"kept"} if options == KEPT else set()
    assert {path.name for path in work.iterdir()} == {"source", "text.txt", "held-out.txt", "s.json"} | kept
    if kept:
        assert {path.name for path in (work / "kept").iterdir()} == {"source-gqa2-mean", "source-mqa-mean"}
        assert all((path / "config.json").exists() for path in (work / "kept").iterdir())


def test_a_checkpoint_of_somebody_else_is_still_refused(work: Path, cli: Any) -> None:
    (work / "kept/source-mqa-mean").mkdir(parents=True)
    (work / "kept/source-mqa-mean/thesis.tex").touch()
    answer = cli(*SWEEP, *KEPT)
    assert answer.code == 1
    assert "kept/source-mqa-mean exists, and is not among the results" in answer.err
    assert (work / "kept/source-mqa-mean/thesis.tex").exists()


def test_interrupted_before_there_is_a_result(work: Path) -> None:
    """The text that was divided for this run goes as well, or the message would not be true."""
    child = Child(work, Moment(f"{STEPS}.Yardstick"), (*DIVIDED, *ALONE))
    child.send(signal.SIGINT)
    child.go_on()
    assert child.end() == 130
    assert "nothing was left behind" in child.log
    assert {path.name for path in work.iterdir()} == {"source", "text.txt", "held-out.txt"}


def test_text_of_somebody_else_stays(work: Path, cli: Any) -> None:
    (work / "s-text").mkdir()
    (work / "s-text/evaluation.jsonl").write_text("mine")
    answer = cli(*DIVIDED, *ALONE)
    assert (answer.code, "s-text was not made by mha2gqa" in answer.err) == (1, True), answer.err
    assert (work / "s-text/evaluation.jsonl").read_text() == "mine"
