"""How far a command is, told to whoever shows it: one class for all commands, which takes note of nothing.

The console derives from it what a person sees; a test what it wants to know; Python callers may do the same:

    class Layers(Progress):
        def layer(self, module, errors, number, total):
            log.info("%s is done, %d of %d", module, number, total)

    convert(options, Layers())

Numbers and names are plain values. Nothing here prints.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

Advance: TypeAlias = Callable[[int, int], object]
"""Told how much of one thing was done since the last call, and how much of it there is in all."""

WRITING = "writing text"
"""Stage of text that a model writes, in tokens."""


class Progress:
    """Who is told how far a command is. Writing tells from several threads at a time."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Take note of a part of a stage: `done` more of `total` bytes, batches, tokens or steps."""

    def part(self, name: str) -> Advance:
        """Return `stage` for one stage, for what knows nothing of others."""
        return partial(self.stage, name)

    @contextlib.contextmanager
    def under_way(self, name: str) -> Iterator[None]:
        """Take note of something that goes on while the block runs, of which nobody knows how far it is."""
        yield

    def layer(self, module: str, errors: Mapping[str, float], number: int, total: int) -> None:
        """Take note of an attention layer that is finished, `number` of `total`.

        Args:
            module: Its name in the module tree.
            errors: Step of a refinement -> squared error of the layer's output, as a share of its energy.
            number: Of the layer, from 1.
            total: How many layers there are.
        """

    def step(self, name: str, done: int, total: int) -> None:
        """Take note of a step that begins with `done` of `total` behind it; all its stages are new."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take note of something worth a line, as plain values with a `kind`."""


QUIET = Progress()
"""Tells nobody."""
