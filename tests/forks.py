"""Processes of their own that share one start-up, which takes longer than what they do.

One process of a test session imports torch, transformers and what the commands need (`preloaded.py`), and does nothing
else; others are forked from it. So what is said of processes holds: they can be killed, meet over a port, and share no
memory. Python has one such process alone, and what it imports is settled when the first one is forked: hence one list.
"""

import contextlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mha2gqa.verbs.export import gguf

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])
_QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def fork(target: Callable[..., None], *values: Any) -> BaseProcess:
    """Start a function in a process."""
    process = FORKS.Process(target=target, args=values, daemon=True)
    with patch.dict(os.environ, _QUIET):  # the first one starts the process that they are forked from
        process.start()
    return process


def run_module(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
    """Run the `main` of `python -P -m MODULE ...` as `subprocess.run` does, but in a process that is forked."""
    with tempfile.TemporaryDirectory() as folder:
        process = fork(_as_main, command, f"{folder}/out", f"{folder}/err")
        process.join()
        out, err = (_read(f"{folder}/{name}") for name in ("out", "err"))
    return subprocess.CompletedProcess(command, process.exitcode or 0, out, err)


@contextlib.contextmanager
def forked_converter() -> Iterator[None]:
    """Fork llama.cpp's converter while the block runs; `subprocess` starts it, and imports everything, elsewhere."""
    with patch.object(gguf, "subprocess", types.SimpleNamespace(run=run_module, DEVNULL=None)):
        yield


def run_module_beside(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
    """Do the same where this process is one of those that were forked, and has no threads."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        if not (child := os.fork()):
            code = 1
            try:
                _as_main(command, out.name, err.name)
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return subprocess.CompletedProcess(command, code, _read(out.name), _read(err.name))


def _as_main(command: list[str], out: str, err: str) -> None:
    assert command[:3] == [sys.executable, "-P", "-m"]
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = [command[3], *command[4:]]
    try:
        importlib.import_module(command[3]).main()
    finally:
        sys.stdout.flush()


def _read(path: str) -> str:
    return Path(path).read_text(errors="replace")
