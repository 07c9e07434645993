"""Has the Trainer refuse its settings before anything is read: it is made once, on a model of one number.

What TrainingArguments let through is refused by the Trainer when it is made, or makes its optimiser, its schedule or
its loader: a package that is not installed, a schedule without its arguments, sharding without a launcher. Which
setting it refuses is found by leaving out one after the other.
"""

import copy
import os
import random
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils.import_utils import is_liger_kernel_available

from mha2gqa.errors import TrainingError

Build = Callable[[Mapping[str, Any]], TrainingArguments]
"""Makes the arguments with these settings."""
_LAUNCHED = ("fsdp", "fsdp_config", "deepspeed")


class _OneNumber(PreTrainedModel):
    """What the Trainer is made for."""

    config_class = PreTrainedConfig

    def __init__(self) -> None:
        super().__init__(PreTrainedConfig())
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.layer(input_ids.float()).sum(),)


def rehearsed(build: Build, given: Mapping[str, Any], *, without_launcher: bool = False) -> TrainingArguments:
    """Return the arguments that the Trainer is then made with.

    Args:
        build: Makes them.
        given: The user's settings.
        without_launcher: A run is planned that torchrun or accelerate will start: the Trainer is made without what
            only their processes can be asked for, which TrainingArguments alone then judge.

    Raises:
        TrainingError: The Trainer refuses one of them.
    """
    later = _LAUNCHED if without_launcher else ()
    made, refusal = _attempt(build, given, later)
    if made is not None:
        return made
    without = {name: {key: value for key, value in given.items() if key != name} for name in given}
    guilty = [name for name, rest in without.items() if _attempt(build, rest, later)[0]]
    named = ", ".join(f"{name}={given[name]}" for name in guilty or given)
    raise TrainingError(
        f"The Trainer refuses its settings{f' ({named})' if named else ''}: {refusal}",
        expected="settings that go together, and what they need installed",
        remedy=f"Install what is missing, or leave out {' or '.join(guilty)}" if guilty else "Leave them out",
    )


def _attempt(build: Build, given: Mapping[str, Any], later: Collection[str]) -> tuple[TrainingArguments | None, str]:
    with _unheard():  # until what was made is gone
        return _made(build, given, later)


def _made(build: Build, given: Mapping[str, Any], later: Collection[str]) -> tuple[TrainingArguments | None, str]:
    try:
        with _untouched():
            _rehearse(build({name: value for name, value in given.items() if name not in later}))
            arguments = build(given)
    except Exception as error:  # the Trainer, accelerate and integrations refuse with exceptions of every kind
        return None, " ".join(str(error).split())[:300] or type(error).__name__
    return arguments, ""


def _rehearse(arguments: TrainingArguments) -> None:
    if arguments.use_liger_kernel and not is_liger_kernel_available():  # the Trainer asks when it begins
        raise ImportError("use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    with tempfile.TemporaryDirectory() as directory:  # the Trainer makes its directory at once
        tried = copy.copy(arguments)
        tried.output_dir = directory
        rows = [{"input_ids": torch.ones(1)}] * max(2, tried.train_batch_size)
        trainer = Trainer(model=_OneNumber(), args=tried, train_dataset=rows, eval_dataset=rows)
        if not trainer.is_deepspeed_enabled:
            trainer.create_optimizer_and_scheduler(max(2, tried.max_steps))
        trainer.get_train_dataloader()


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep quiet about integrations that fail in their destructor, having failed in their constructor (MLflow's)."""
    said, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = said


@contextmanager
def _untouched() -> Iterator[None]:
    """Keep the state of every generator of random numbers; and the environment, where the block fails."""
    before, numbers, state = dict(os.environ), np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            yield
        except BaseException:
            os.environ.clear()
            os.environ.update(before)
            raise
        finally:
            np.random.set_state(numbers)
            random.setstate(state)
