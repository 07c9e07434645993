"""What survives a kill: a hidden directory beside the output, with blocks, samples and the Trainer's checkpoints.

It is there as long as a run is not finished. One that is there already belongs to a run that was interrupted, and is
gone on with or cleared away only when that is asked for.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mha2gqa.errors import Interrupted, OutputError, TrainingError, going_on
from mha2gqa.files.staging import refusals
from mha2gqa.files.working import check_ours, claimed, clear, has_links, remove, working_directory

_RECIPE = "recipe.yaml"
_LASTING = ("checkpoint-*/trainer_state.json", "samples.jsonl")
"""What a run that fails leaves to the next one."""
_COMMAND = "the same command with --resume"


def workspace_of(output: Path) -> Path:
    """Return where the run for an output works."""
    return working_directory(output, "uptrain")


def check_workspace(output: Path, *, resume: bool, force: bool) -> None:
    """Refuse to lose, or to go on with, an interrupted run that was not meant.

    Raises:
        TrainingError: There is one, and neither was asked for; or there is none to go on with.
        OutputError: What is there is somebody else's.
    """
    work = workspace_of(output)
    with refusals(output):
        check_ours(work)
    if resume and not (work / _RECIPE).is_file():
        raise TrainingError(
            f"There is no interrupted run for {output} to go on with",
            expected=str(work),
            remedy="Leave out --resume",
        )
    if work.exists() and not resume and not force and any(any(work.glob(one)) for one in _LASTING):
        raise TrainingError(
            f"An interrupted run for {output} is in {work}",
            remedy="Go on with it by --resume, or start again by --force",
        )


@contextlib.contextmanager
def training_workspace(output: Path, recipe: Mapping[str, Any], *, resume: bool, is_main: bool) -> Iterator[Path]:
    """Give the workspace, which goes when the block succeeds and stays when it holds something to go on with.

    Args:
        output: The directory that will be created at last.
        recipe: What the run depends on.
        resume: Whether to go on with what is there.
        is_main: Whether this process keeps the directory; the others only use it.

    Raises:
        TrainingError: What is there is of another recipe.
        OutputError: Another run works there, or the disk refuses.
    """
    work = workspace_of(output)
    if not is_main:
        yield work
        return
    with refusals(output), claimed(work, output):
        try:
            with refusals(output):
                _prepare(work, recipe, resume=resume)
                yield work
        except BaseException as error:
            _leave(work, error, recipe.get("samples"))
            raise
        remove(work)


def _prepare(work: Path, recipe: Mapping[str, Any], *, resume: bool) -> None:
    path = work / _RECIPE
    if resume and has_links(work):
        raise TrainingError(f"There are links in {work}, which are not followed", remedy="Start again by --force")
    text = yaml.safe_dump(dict(recipe), sort_keys=True)
    if not resume:
        clear(work)
        path.write_text(text, encoding="utf-8")
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = yaml.safe_load(text)
    if differing := [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]:
        told = ", ".join(f"{key}: {_differences(before.get(key), now.get(key))}" for key in differing)
        raise TrainingError(
            f"The interrupted run had other settings ({told})",
            expected="the same command with --resume",
            remedy="Or start again by --force",
        )


def _differences(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        return "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys)
    return f"was {before!r}, is {now!r}"


def _leave(work: Path, error: BaseException, samples: str | None) -> None:
    """Clear a workspace away, or say where it stays: by the refusal itself, or in the place of Ctrl-C."""
    for checkpoint in work.glob("checkpoint-*"):
        if not read_state(checkpoint):  # cut off: of no use, and it may be what has filled the disk
            shutil.rmtree(checkpoint, ignore_errors=True)
    lasts = any(any(work.glob(one)) for one in _LASTING)
    kept = going_on(work, _COMMAND) if lasts else ""
    if not lasts:
        with contextlib.suppress(OSError):
            remove(work)
        if samples is not None and Path(samples).is_file():
            kept = going_on(samples)
    if isinstance(error, OutputError):
        error.kept = kept
    elif isinstance(error, KeyboardInterrupt) and kept:
        raise Interrupted(kept) from error


def newest_checkpoint(work: Path) -> Path | None:
    """Return the Trainer's last checkpoint that is whole; one that a kill has cut off is none."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    return next((path for path in found if read_state(path)), None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the Trainer's state in a checkpoint, which is written last; empty where it is not whole."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state
