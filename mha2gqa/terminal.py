"""Standard streams as they may be found: closed, full, or unable to show every character."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from mha2gqa.errors import OutputError


def open_streams() -> None:
    """Open what was closed (`>&-`), so that no file of ours takes its place, and let every character be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
        if mode == "w" and isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _to_nowhere(stream: TextIO) -> None:
    """Have what is left of a stream, and what follows, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Told:
    """Standard output that says in a message of ours that it cannot be written, but not that nobody reads it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._refusal: OutputError | None = None
        """What was raised once: whoever prints may try a stream first, and keep the answer to themselves."""

    def write(self, text: str) -> int:
        with self._telling():
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with self._telling():
            self._stream.flush()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        if self._refusal is not None:
            raise self._refusal
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            _to_nowhere(self._stream)  # also at the very end
            self._refusal = OutputError(
                f"Standard output cannot be written: {error.strerror}", remedy="Name another place for it"
            )
            raise self._refusal from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Mute(_Told):
    """Standard error that, where it cannot be written, is silent: what is told there is worth no run that would end."""

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _to_nowhere(self._stream)


@contextlib.contextmanager
def told_output() -> Iterator[None]:
    """Refuse, while the block runs, to print results to where nothing can be written; notes are not missed there.

    Raises:
        OutputError: Standard output cannot be written.
    """
    own, notes = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast("TextIO", _Told(own)), cast("TextIO", _Mute(notes))
    try:
        yield
        sys.stdout.flush()
    except SystemExit:  # after help and versions
        sys.stdout.flush()
        raise
    finally:
        sys.stdout, sys.stderr = own, notes
