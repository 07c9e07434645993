"""Renders a page from a template, and puts it on disk as one file that needs no other.

Everything that comes from outside (names, prompts, generated text) is escaped by jinja2, shown with its
control characters visible, and kept from loading or running anything by the page's own content policy.

What stands on a page is decided elsewhere; see `verify_page.py`.
"""

import functools
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mha2gqa.errors import OutputError, visible
from mha2gqa.files.working import replace_file
from mha2gqa.units import format_size

NAME = "report.html"
"""The file that a page becomes."""


def check_place(directory: Path) -> None:
    """Refuse a directory that a page cannot be written into, before anything is measured.

    Raises:
        OutputError: It is a file, holds a checkpoint, or it or the nearest directory above it cannot be written.
    """
    target = directory.resolve()
    holder = next(folder for folder in (target, *target.parents) if folder.exists())
    if not (holder.is_dir() and os.access(holder, os.W_OK | os.X_OK)):
        raise _refusal(directory, f"{holder} is {'not writable' if holder.is_dir() else 'no directory'}")
    if (target / "config.json").exists():
        raise _refusal(directory, "it holds a checkpoint, of which a page is no part")
    if (target / NAME).is_dir():
        raise _refusal(directory, f"{target / NAME} is a directory")


def write_page(directory: Path, content: str) -> Path:
    """Write `report.html` into `directory`, which is made if need be; an earlier one is replaced.

    Returns:
        The file.

    Raises:
        OutputError: The disk is full, or writing is not permitted.
    """
    target = directory / NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(target, content.encode())
    except OSError as error:
        raise _refusal(directory, str(error.strerror)) from error
    return target


def render(template: str, **context: Any) -> str:
    """Return the page that a template of `templates/` makes of `context`."""
    return _environment().get_template(template).render(**context)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mha2gqa.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"size": format_size, "count": "{:,}".format, "seconds": "{:.1f} s".format}
    return environment


def _refusal(directory: Path, reason: str) -> OutputError:
    return OutputError(
        f"The page cannot be written into {directory}: {reason}",
        expected="a directory with write permission, or a name for a new one",
        remedy="Choose another with --report",
    )
