"""Commands as they are typed: in cards, in what a sweep recommends, and where a report says what to do next."""

import shlex
from collections.abc import Mapping
from typing import Any


def command_line(verb: str, subject: str | None, options: Mapping[str, Any]) -> str:
    """Return a command, quoted for a shell.

    Args:
        verb: Of the command line.
        subject: Its first argument; nothing for the reference checkpoint.
        options: Name on the command line -> value, as the record keeps them: None and empty ones are left out, of a
            list each value is given by itself, and a mapping is written as `decoder=8,cross=4`.
    """
    words = ["mha2gqa", verb]
    if subject:
        words.append(f"./{subject}" if subject.startswith("-") else subject)
    for name, value in options.items():
        words += [word for one in _texts(value) for word in (f"--{name}", one)]
    return shlex.join(words)


def _texts(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return [",".join(f"{name}={one}" for name, one in value.items())]
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
