"""A `Progress` that keeps what it is told."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from mha2gqa.progress import Progress


class Told(Progress):
    """What a command has told so far."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        """Stage -> how much of it was done."""
        self.totals: dict[str, set[int]] = {}
        """Stage -> how much of it was said to be there."""
        self.layers: list[tuple[str, Mapping[str, float]]] = []
        """Module and errors of each finished layer."""
        self.counts: list[tuple[int, int]] = []
        """Number of each finished layer, and how many were said to be there."""
        self.steps: list[tuple[str, int, int]] = []
        self.events: list[Mapping[str, Any]] = []
        self.under: list[str] = []
        """What was under way, in turn."""
        self._lock = threading.Lock()

    def stage(self, name: str, done: int, total: int) -> None:
        with self._lock:
            self.done[name] = self.done.get(name, 0) + done
            self.totals.setdefault(name, set()).add(total)

    @contextlib.contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        self.under.append(name)
        yield

    def layer(self, module: str, errors: Mapping[str, float], number: int, total: int) -> None:
        self.layers.append((module, errors))
        self.counts.append((number, total))

    def step(self, name: str, done: int, total: int) -> None:
        self.steps.append((name, done, total))

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
