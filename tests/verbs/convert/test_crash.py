"""Runs that die: whatever the moment, nothing stands there that could be taken for a finished checkpoint.

    test_killed_at       SIGKILL at named moments of a run, from the first byte to the last rename
    test_interrupted_at  Ctrl-C at the same moments once writing has begun: exit code 130, and nothing is left at all
    test_two_at_once     the second run is refused while the first one stands still, and does not disturb it
    test_a_large_one     the command itself, killed and interrupted from outside as its output grows

`Child` runs the command line in a process that was forked from one with everything imported. It stands still at a
`Moment`, so that a signal meets it there.
"""

import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mha2gqa.cli import main
from tests.forks import FORKS, fork

TIMEOUT = 120


class Moment(NamedTuple):
    """Just before, or just after, the n-th call of a function."""

    function: str
    call: int = 1
    after: bool = False


START = {"lock": Moment("fcntl.flock")}
WRITING = {
    "header": Moment("os.pwrite"),
    "first byte": Moment("os.pwrite", 2),
    "half": Moment("os.pwrite", 24),
    "sync": Moment("os.fsync"),
    "tokenizer": Moment("shutil.copyfile", 2),
    "record": Moment("mha2gqa.files.finish.write_record"),
    "config": Moment("mha2gqa.files.finish.write_config"),
}
ENDING = {
    "read back": Moment("mha2gqa.files.finish.check_written"),
    "last sync": Moment("mha2gqa.files.staging._sync"),
    "rename": Moment("pathlib.Path.rename"),
}
REPLACING = {
    "first rename": Moment("pathlib.Path.rename", 1),
    "second rename": Moment("pathlib.Path.rename", 2),
    "removal": Moment("pathlib.Path.rename", 2, after=True),
}


def run(arguments: tuple[str, ...], directory: Path, moment: Moment, reached: Event, resume: Event) -> None:
    """In the child: run the command line, and stand still at a moment."""
    os.chdir(directory)
    torch.set_num_threads(1)
    sys.argv = ["mha2gqa", *arguments]
    sys.stderr = sys.stdout = Path("log").open("w", buffering=1)  # noqa: SIM115 (lives as long as the process)
    module, _, name = moment.function.rpartition(".")
    owner, calls = pkgutil.resolve_name(module), iter(range(1, moment.call))
    function = getattr(owner, name)

    def stop() -> None:
        if not reached.is_set():
            reached.set()
            resume.wait(TIMEOUT)

    def observed(*args: Any, **kwargs: Any) -> Any:
        is_now = next(calls, None) is None
        if is_now and not moment.after:
            stop()
        result = function(*args, **kwargs)
        if is_now and moment.after:
            stop()
        return result

    setattr(owner, name, observed)
    main()


class Child:
    """A run that stands still at a moment until `go_on`."""

    def __init__(self, directory: Path, moment: Moment, arguments: tuple[str, ...]) -> None:
        self._reached, self._resume = FORKS.Event(), FORKS.Event()
        self._log = directory / "log"
        self._process = fork(run, arguments, directory, moment, self._reached, self._resume)
        assert self._reached.wait(TIMEOUT)

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def go_on(self) -> None:
        self._resume.set()

    def end(self) -> int:
        """Wait for it; the exit code, and what it printed in `log`."""
        self._process.join(TIMEOUT)
        self.log = self._log.read_text()
        self._log.unlink()
        return self._process.exitcode


@pytest.fixture
def start(tmp_path: Path):
    def start(moment: Moment, *options: str) -> Child:
        return Child(tmp_path, moment, ("convert", "source", "-g", "2", "-o", "out", *options))

    return start


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def checkpoints(directory: Path) -> set[str]:
    """The directories that somebody could take for a checkpoint."""
    return {path.parent.name for path in directory.glob("[!.]*/config.json")}


def moments(*tables: dict[str, Moment]) -> list[Any]:
    return [pytest.param(moment, id=name) for table in tables for name, moment in table.items()]


@pytest.mark.parametrize("moment", moments(START, WRITING, ENDING))
def test_killed_at(tiny, cli, start, tmp_path, tree, moment):
    assert cli("convert", tiny(), "-g", 2, "-o", "expected").code == 0
    expected = tree(tmp_path / "expected")
    child = start(moment)
    child.send(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert names(tmp_path) == {"source", "expected", ".out.partial"}
    if moment not in ENDING.values():
        assert not (tmp_path / ".out.partial/.out.partial/config.json").exists()
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0
    assert names(tmp_path) == {"source", "expected", "out"}
    assert tree(tmp_path / "out") | {"README.md": b""} == expected | {"README.md": b""}


@pytest.mark.parametrize("moment", moments(WRITING, ENDING))
def test_interrupted_at(tiny, start, tmp_path, moment):
    tiny()
    child = start(moment)
    child.send(signal.SIGINT)
    child.go_on()
    assert child.end() == 130
    assert names(tmp_path) == {"source"}
    assert "Traceback" not in child.log
    assert "Interrupted; nothing was left behind." in child.log


@pytest.mark.parametrize("moment", moments(REPLACING))
def test_killed_while_it_replaces(tiny, cli, start, tmp_path, moment):
    """Either output is there, or none; never a mixture, and the next run tidies up."""
    assert cli("convert", tiny(), "-g", 2, "-o", "out").code == 0
    (tmp_path / "out/of-the-first.txt").touch()
    child = start(moment, "--force")
    child.send(signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert (tmp_path / "out").exists() == (moment != REPLACING["second rename"])
    assert (tmp_path / "out/of-the-first.txt").exists() == (moment == REPLACING["first rename"])
    assert checkpoints(tmp_path) - {"out"} == {"source"}
    assert cli("convert", "source", "-g", 2, "-o", "out", "--force").code == 0
    assert names(tmp_path) == {"source", "out"}
    assert not (tmp_path / "out/of-the-first.txt").exists()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_two_at_once(tiny, cli, start, tmp_path, load, force):
    tiny()
    first = start(WRITING["half"], *force)
    second = cli("convert", "source", "-g", 2, "-o", "out", *force)
    assert (second.code, second.err.count("\n")) == (1, 1)
    assert "Another run is writing out" in second.err
    first.go_on()
    assert first.end() == 0, first.log
    assert names(tmp_path) == {"source", "out"}
    load(tmp_path / "out")


# The command itself, on something that takes it a while


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 240 MB of random bf16, written as a stream."""
    width, inner, layers, vocabulary = 1024, 4096, 6, 16384
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{prefix}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    kind = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8}
    directory = tmp_path_factory.mktemp("large")
    (directory / "source").mkdir()
    (directory / "source/config.json").write_text(json.dumps(kind | sizes))
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header, block = json.dumps(entries).encode(), np.random.default_rng(0).integers(0, 1 << 16, 1 << 20, np.uint16)
    block &= 0xBFFF  # without the top bit of the exponent: finite
    with (directory / "source/model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, end, block.nbytes):
            file.write(block.tobytes()[: end - start])
    return directory


@contextmanager
def started(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "mha2gqa", "convert", "source", "--groups", "2", "--output", "out"]
    with subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def wait_for(process: subprocess.Popen[str], partial: Path, size: int) -> None:
    """Wait until a directory holds `size` bytes on disk, or the process has ended."""
    while process.poll() is None:
        try:
            if sum(entry.stat().st_blocks * 512 for entry in os.scandir(partial / partial.name)) >= size:
                return
        except FileNotFoundError:
            pass
        os.sched_yield()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "part"), [(signal.SIGKILL, 0.0), (signal.SIGKILL, 0.2), (signal.SIGKILL, 0.5), (signal.SIGINT, 0.2)]
)
def test_a_large_one(large, cli, monkeypatch, load, number, part):
    whole = (large / "source/model.safetensors").stat().st_size
    with started(large) as process:
        wait_for(process, large / ".out.partial", int(part * whole))
        process.send_signal(number)
        message = process.communicate(timeout=TIMEOUT)[1]
    if process.returncode == 0:  # it was faster than the signal, and must then be whole
        load(large / "out")
        shutil.rmtree(large / "out")
    else:
        assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number]
        assert names(large) == {"source"} | ({".out.partial"} if number == signal.SIGKILL else set())
        assert not (large / ".out.partial/.out.partial/config.json").exists()
        assert "Traceback" not in message
    monkeypatch.chdir(large)
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0
    assert names(large) == {"source", "out"}
    load(large / "out")
    shutil.rmtree(large / "out")
