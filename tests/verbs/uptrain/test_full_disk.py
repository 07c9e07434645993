"""Runs on a disk that takes no more, or that are interrupted: one message that says what stays where, and a rerun.

The disk is played by the largest size of a file that the system allows this process.
"""

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mha2gqa.verbs.uptrain import train as training_run
from mha2gqa.verbs.uptrain.samples import write_samples
from mha2gqa.verbs.uptrain.workspace import newest_checkpoint, workspace_of
from tests.verbs.uptrain.subjects import QUICK, save_subject

Cli = Callable[..., Any]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def command(tmp_path: Path) -> tuple[object, ...]:
    save_subject(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"trainer": QUICK}))
    options = ("--context", 32, "--steps", 4, "--held-out-tokens", 200, "--config", "recipe.yaml", "-o", "out")
    return ("uptrain", "converted", "--data", "documents.jsonl", *options)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("size", [10, 100, 5_000, 30_000, 200_000, 310_000])
def test_nothing_is_left_where_nothing_was_saved(command: Any, cli: Cli, tmp_path: Path, size: int) -> None:
    before = names(tmp_path)
    with largest_file(size):
        answer = cli(*command)
    lines = [line for line in answer.err.splitlines() if line.startswith("error")]
    assert (answer.code, len(lines), "Traceback" in answer.err) == (1, 1, False), answer.err
    assert re.search(r"Writing (out|/\S+/config\.json) failed: ", lines[0])  # one for transformers to read comes first
    assert "stays" not in lines[0]
    assert names(tmp_path) == before


def test_what_was_saved_stays_and_is_named(command: Any, cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    def fill(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with monkeypatch.context() as patch, largest_file(1 << 30):
        patch.setattr(training_run._Reporter, "on_step_end", fill)
        answer = cli(*command)
    work = workspace_of(tmp_path / "out")
    assert answer.code == 1, answer.err
    last = answer.err.splitlines()[-1]
    assert f"What was finished stays in {work}, and the same command with --resume goes on from there." in last
    assert newest_checkpoint(work) == work / "checkpoint-2"
    assert not (work / "checkpoint-4").exists(), "what was cut off is what has filled the disk"
    again = cli(*command)
    assert (again.code, "--resume" in again.err) == (1, True)
    assert cli(*command, "--resume").code == 0
    assert not work.exists()
    assert (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize("step", [1, 3])
def test_ctrl_c_says_what_it_left(command: Any, cli: Cli, tmp_path: Path, monkeypatch: Any, step: int) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run._Reporter, "on_step_end", stop)
        answer = cli(*command)
    work = workspace_of(tmp_path / "out")
    last = answer.err.splitlines()[-1]
    assert answer.code == 130
    if step == 1:
        assert last == "error: Interrupted; nothing was left behind."
        assert not work.exists()
        return
    kept = f"error: Interrupted. What was finished stays in {work}, and the same command with --resume goes on"
    assert last.startswith(kept)
    assert cli(*command, "--resume").code == 0
    assert not work.exists()


def test_ctrl_c_names_the_samples_that_were_wanted(command: Any, cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    sampled = [word if word != "documents.jsonl" else "self" for word in command]
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "UptrainTrainer", stop)
        answer = cli(*sampled, "--samples", "samples.jsonl")
    assert answer.code == 130
    assert "What was finished stays in samples.jsonl, and the same command goes on from there." in answer.err
    assert (tmp_path / "samples.jsonl").stat().st_size
    assert not workspace_of(tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    ["my notes\n", "my notes", '{"text": "a row"}\n' * 3, "[1]\n", '{"ids": 3}\n', "\n\n", "{" * 99999 + "\n"],
)
def test_samples_never_take_the_place_of_another_file(tmp_path: Path, content: str) -> None:
    from mha2gqa.errors import TextError

    (tmp_path / "notes.txt").write_text(content)
    unused: Any = None
    with pytest.raises(TextError, match="holds no samples"):
        write_samples(
            tmp_path / "notes.txt", unused, unused, tokens=9, context=8, seed=0, advance=lambda done, total: None
        )
    assert (tmp_path / "notes.txt").read_text() == content


def test_samples_that_were_cut_off_are_gone_on_with(tmp_path: Path) -> None:
    line = json.dumps({"ids": [*range(8)], "text": "x"}) + "\n"
    (tmp_path / "samples.jsonl").write_text(line * 16 + line * 3 + line[:20])
    unused: Any = None
    write_samples(
        tmp_path / "samples.jsonl", unused, unused, tokens=100, context=8, seed=0, advance=lambda done, total: None
    )
    assert (tmp_path / "samples.jsonl").read_text() == line * 16
