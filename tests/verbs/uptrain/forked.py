"""Commands that train, forked (`tests/forks.py`): each with streams, environment and end of its own.

`torchrun` itself is run where a test says so.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.forks import fork


class Forked:
    """A command that runs.

    Args:
        words: Its arguments.
        output: File for what it prints; errors go beside it.
        environment: Variables of its own.
    """

    def __init__(self, words: Sequence[str], output: Path, **environment: str) -> None:
        self._output = output
        self._process = fork(_run, list(words), str(output), environment)

    def lines(self) -> list[str]:
        """Return the whole lines that were printed so far."""
        text = self._output.read_text() if self._output.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()

    def wait_for(self, text: str) -> list[str]:
        """Wait for a line with a text; return the lines up to it."""
        while True:
            lines, ended = self.lines(), not self._process.is_alive()
            if found := [number for number, line in enumerate(lines) if text in line]:
                return lines[: found[0] + 1]
            assert not ended, self.errors()
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()

    def end(self) -> list[str]:
        """Wait for the end, which has to be a good one; return what was printed."""
        self._process.join(600)
        assert self._process.exitcode == 0, self.errors()
        return self.lines()

    def errors(self) -> str:
        """Return the end of what was printed as errors."""
        return self._output.with_suffix(".err").read_text()[-3000:]


def world(words: Sequence[str], output: Path, port: int, processes: int, nodes: int = 1) -> list[Forked]:
    """Start a command in processes that train together, as `torchrun` does; all nodes are this machine."""
    size = {"WORLD_SIZE": str(processes * nodes), "LOCAL_WORLD_SIZE": str(processes)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank % processes)} for rank in range(processes * nodes)]
    return [
        Forked(words, output.with_name(f"{output.name}-{number}.out"), **size, **meeting, **rank)
        for number, rank in enumerate(ranks)
    ]


def end_all(processes: Sequence[Forked]) -> list[str]:
    """Wait for the good end of all; return what the first printed."""
    first, *_ = [one.end() for one in processes]
    return first


def _run(words: list[str], output: str, environment: dict[str, str]) -> None:
    for number, path in ((1, output), (2, str(Path(output).with_suffix(".err")))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ |= environment
    sys.argv = ["mha2gqa", *words]
    import torch

    from mha2gqa.cli import main

    torch.set_num_threads(1)
    main()
