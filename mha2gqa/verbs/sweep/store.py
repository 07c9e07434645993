"""The file of a sweep's results: written after every measurement, and read again by a run that goes on from it.

A file goes with its settings: everything that its numbers depend on. Results that were measured with other settings
are never mixed with new ones.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mha2gqa.errors import OutputError, SweepError
from mha2gqa.files.pieces import path_of
from mha2gqa.files.working import replace_file
from mha2gqa.model.original import Original
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.outcome import Sweep, parse

_OF_A_POINT = ("groups", "window", "cache", "methods", "refine")
_WITHOUT_EFFECT = ("model", "activation_memory", "max_ppl_increase", "sensitivity", "output", "keep", "report", "force")
_PACKAGES = ("mha2gqa", "torch", "transformers")


def settings_of(options: SweepOptions, original: Original) -> dict[str, Any]:
    """Return everything that numbers depend on, but for the way to convert: options, files, versions."""
    asked = {name: value for name, value in asdict(options).items() if name not in (*_OF_A_POINT, *_WITHOUT_EFFECT)}
    source = original.source
    weights = sorted({path_of(info.file) for info in original.tensors})
    texts = [Path(name).expanduser() for name in (*options.data, *options.eval_data)]
    files = [_state(path) for path in (*weights, *filter(os.path.isfile, texts))]
    model = f"{source.hub_id}@{source.revision}" if source.hub_id else str(source.directory.resolve())
    settings = {"model": model, **asked, "files": files, "versions": {name: version(name) for name in _PACKAGES}}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _state(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns


def read_results(path: Path, settings: Mapping[str, Any], *, force: bool) -> Sweep | None:
    """Return the results of an earlier run; None where there are none, or where `force` lets them be replaced.

    Raises:
        SweepError: The file is of another sweep, or of no sweep.
        OutputError: There cannot be a file.
    """
    _check_place(path)
    if not path.exists():
        return None
    try:
        found = parse(json.loads(path.read_text(encoding="utf-8")))
        different = [name for name in {**settings, **found.settings} if settings.get(name) != found.settings.get(name)]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SweepError(
            f"{path} does not hold the results of a sweep ({type(error).__name__}: {error})",
            expected="a file that mha2gqa sweep has written, or none",
            remedy="Choose another with -o",
        ) from error
    if not different:
        return found
    if force:
        return None
    raise SweepError(
        f"{path} holds the results of another sweep: {_difference(different[0], found.settings, settings)}",
        expected="the same model, text and options, apart from the ways to convert",
        remedy="Choose another file with -o, or replace it with --force",
    )


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == "files":
        return "the model's or the text's files have changed"
    return f"{name} was {before.get(name)!r} and is {now.get(name)!r}"


def _check_place(path: Path) -> None:
    holder = next(folder for folder in path.resolve().parents if folder.exists())
    is_other = path.exists() and not path.is_file()
    if is_other or not (holder.is_dir() and os.access(holder, os.W_OK | os.X_OK)):
        other = "it is a directory" if path.is_dir() else "it is no ordinary file"
        reason = other if is_other else f"{holder} cannot be written into"
        raise OutputError(f"The results cannot be written to {path}: {reason}", remedy="Choose another file with -o")


def write_results(path: Path, sweep: Sweep) -> None:
    """Write the results; a crash leaves the file as it was before or as it is now.

    Raises:
        OutputError: The disk is full, or writing is not permitted.
    """
    content = json.dumps(sweep.to_json(), indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(
            f"The results cannot be written to {path}: {error.strerror}", remedy="Choose another file with -o"
        ) from error
