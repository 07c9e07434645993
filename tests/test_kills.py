"""SIGKILL at random moments of every command that writes: nothing false stands there, and a rerun ends as if unbroken.

    WAYS      a command, with what lies beside it: links, an output to replace
    test      kills it a few times in a row, at seeded events of the file system, and then lets it finish

Each run is a process forked from one that has everything imported; it counts its own writes, renames and removals
(Python's audit events) and kills itself before the n-th. Between two runs somebody may put a link to a directory of
their own in the place of what was left: that is refused, and not touched.
"""

import json
import os
import random
import shutil
import signal
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mha2gqa.cli import main
from mha2gqa.files.working import working_directory
from mha2gqa.verbs.export import gguf
from tests.forks import fork, run_module_beside
from tests.verbs.export.subjects import save_readable
from tests.verbs.uptrain.subjects import QUICK, save_documents
from tests.verbs.verify.subjects import converted, save_source, save_text

TIMEOUT = 120
IN_A_ROW = 3
"""Kills of one run, each of which goes on behind the one before."""
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile", "fcntl.flock"}
SIZE = ("--context", "24", "--tokens", "600")
LEARNING = ("--method", "aligned", "--refine", "distil", "--steps", "2", "--data", "text.txt", *SIZE)
UPTRAIN = ("uptrain", "two", "--data", "documents.jsonl", "--context", "32", "--steps", "4", "--held-out-tokens", "200")
SWEEP = ("sweep", "source", "-g", "2", "--methods", "mean", "--eval-data", "text.txt", *SIZE, "--eval-tokens", "240")


@dataclass(frozen=True)
class Way:
    """A command that writes, and how often it is killed."""

    arguments: tuple[str, ...]
    kills: int
    output: str = "out"
    replaces: bool = False
    """An output is there, which `--force` replaces."""
    spared: int = 0
    """Runs that go on behind the one before may be over before their moment comes; no more than so many."""


WAYS = {
    "mean": Way(("convert", "source", "-g", "2", "-o", "out"), 12),
    "mean, in shards": Way(("convert", "source", "-g", "2", "-o", "out", "--max-shard-size", "60KB"), 6),
    "mean, through links": Way(("convert", "linked", "-g", "2", "-o", "elsewhere/out"), 8, "elsewhere/out"),
    "mean, replacing": Way(("convert", "source", "-g", "2", "-o", "out", "--force"), 10, replaces=True),
    "expand": Way(("expand", "two", "-o", "out"), 6),
    "aligned": Way(("convert", "source", "-g", "2", "--method", "aligned", "--data", "none", "-o", "out"), 8),
    "refined": Way(("convert", "source", "-g", "2", *LEARNING, "-o", "out"), 6, spared=2),
    "sweep": Way((*SWEEP, "--no-sensitivity", "--keep", "kept", "-o", "s.json"), 6, "s.json", spared=2),
    "export": Way(("export", "llama-2", "--gguf", "f32"), 3, "llama-2-f32.gguf"),
    "uptrain": Way((*UPTRAIN, "--config", "recipe.yaml", "-o", "out"), 6, spared=2),
}


def run(arguments: tuple[str, ...], directory: Path, fatal: int) -> None:
    """In the child: run the command line, and die before an event; the number of events is written down at the end."""
    assert "tests.preloaded" in sys.modules, "each run imports everything for itself"
    os.chdir(directory)
    torch.set_num_threads(1)
    sys.argv = ["mha2gqa", *arguments]
    sys.stderr = sys.stdout = Path("log").open("w", buffering=1)  # noqa: SIM115 (lives as long as the process)
    gguf.subprocess = types.SimpleNamespace(run=run_module_beside, DEVNULL=None)
    count, itself = 0, os.getpid()

    def happen() -> None:
        nonlocal count
        count += os.getpid() == itself  # a converter of llama.cpp is forked from it
        if count == fatal and os.getpid() == itself:
            os.kill(itself, signal.SIGKILL)

    def audit(event: str, values: tuple[Any, ...]) -> None:
        if event in EVENTS or (event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR)):
            path = os.fsdecode(values[0]) if isinstance(values[0], (str, bytes, os.PathLike)) else ""
            if not path.startswith("/") or path.startswith(str(directory)):
                happen()

    def told(function: Any) -> Any:
        def observed(*values: Any) -> Any:
            happen()
            return function(*values)

        return observed

    sys.addaudithook(audit)
    os.pwrite, os.fsync = told(os.pwrite), told(os.fsync)
    try:
        main()
    finally:
        Path("events").write_text(str(count))


def child(directory: Path, arguments: tuple[str, ...], fatal: int = 0) -> tuple[int | None, str]:
    process = fork(run, arguments, directory, fatal)
    process.join(TIMEOUT)
    log = directory / "log"
    said = log.read_text()
    log.unlink()
    return process.exitcode, said


@pytest.fixture(scope="session")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kills")
    save_source(directory / "source")
    converted(directory / "source", directory / "two", 2)
    save_readable(directory)
    save_text(directory / "text.txt", 2000)
    save_documents(directory / "documents.jsonl")
    (directory / "recipe.yaml").write_text(yaml.safe_dump({"trainer": QUICK}))
    return directory


@pytest.fixture
def work(_whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(_whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "linked").symlink_to("source")
    (tmp_path / "real").mkdir()
    (tmp_path / "elsewhere").symlink_to("real")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/precious").write_text("kept")
    return tmp_path


def result(path: Path) -> Any:
    """What a run has made, without the times that it took."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        return [[{**point, "seconds": 0} for point in content["points"]], content["recommended"], content["text"]]
    if path.is_file():
        return path.read_bytes()
    timed = ("README.md", "mha2gqa.json") if "uptrain" in (path / "mha2gqa.json").read_text() else ()
    return {one.name: one.read_bytes() for one in path.iterdir() if one.name not in timed}


def names(work: Path) -> set[str]:
    return {str(path.relative_to(work)) for folder in (work, work / "real") for path in folder.iterdir()}


def put_a_link(work: Path, left: Path, arguments: tuple[str, ...]) -> None:
    """Have somebody put a link in the place of what was left: it is refused, and what it names stays."""
    aside = left.with_name("aside")
    left.rename(aside)
    left.symlink_to(work / "theirs")
    code, said = child(work, arguments)
    assert code == 1, said
    assert "is a link to" in said
    assert [path.name for path in (work / "theirs").iterdir()] == ["precious"]
    left.unlink()
    aside.rename(left)


def moments(count: int, kills: int, name: str) -> list[int]:
    """Return seeded moments, one in each part of a run, so that no part is left out, in any order."""
    generator = random.Random(name)
    parts = [(count * part // kills, count * (part + 1) // kills) for part in range(kills)]
    return generator.sample([generator.randint(first + 1, max(first + 1, last)) for first, last in parts], kills)


def again(work: Path, way: Way, fatal: int = 0) -> int | None:
    """Run the command, as the message of a refusal says it is to be run."""
    code, said = child(work, way.arguments, fatal)
    if code == 1 and "--resume" in said:
        code, said = child(work, (*way.arguments, "--resume"), fatal)
    assert code in (0, -signal.SIGKILL), said
    return code


def start_anew(work: Path, way: Way) -> None:
    """Take away what was made; what a killed run has left beside it stays."""
    for made in (work / way.output, work / "kept"):
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    if way.replaces:
        shutil.copytree(work / "two", work / way.output)


def asks_for_force(output: Path, way: Way) -> bool:
    """Whether a run was killed when all was done but for what is tidied up; a sweep goes on from its file."""
    return output.exists() and output.suffix != ".json" and not way.replaces


def check_nothing_false(output: Path, made: list[Any]) -> None:
    """Whatever stands in the place of the output is whole."""
    if output.suffix == ".json":
        json.loads(output.read_text() if output.exists() else "{}")
    elif output.exists():
        assert result(output) in made


@pytest.mark.parametrize("name", WAYS)
def test_a_killed_run_leaves_nothing_false_and_is_made_again(name: str, work: Path) -> None:
    way, output = WAYS[name], work / WAYS[name].output
    others = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    before = [result(work / "two")] if way.replaces else []
    start_anew(work, way)
    assert again(work, way) == 0
    expected, tidy, killed = result(output), names(work), 0
    times = moments(int((work / "events").read_text()), way.kills, name)
    for number, moment in enumerate(times):
        if number % IN_A_ROW == 0 or asks_for_force(output, way):
            start_anew(work, way)
        killed += again(work, way, moment) != 0
        check_nothing_false(output, [expected, *before])
        left = working_directory(output, "partial")
        if number % IN_A_ROW == 0 and left.is_dir() and (way.replaces or not output.exists()):
            put_a_link(work, left, way.arguments)
        if number % IN_A_ROW == IN_A_ROW - 1 or number == way.kills - 1:
            forced = replace(way, arguments=(*way.arguments, "--force"))
            assert again(work, forced if asks_for_force(output, way) else way) == 0
            assert result(output) == expected
            assert names(work) == tidy
    assert {path: path.read_bytes() for path in others} == others
    assert killed >= way.kills - way.spared
