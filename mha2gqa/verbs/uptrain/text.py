"""Has what a run reads as rows on disk: to learn from, and, never overlapping, to measure on.

What is read and how it becomes rows is the task's (`task.py`). It is read in order, shuffled through a buffer,
tokenised once, and only as far as the run needs it: a corpus may be larger than the disk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.progress import Progress
from mha2gqa.texts.find import SELF
from mha2gqa.verbs.uptrain.blocks import BlockFile, TrainingRow, read_blocks
from mha2gqa.verbs.uptrain.documents import is_held_out
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.samples import read_samples, write_samples
from mha2gqa.verbs.uptrain.task import Task, row_count

_TRAINING, _HELD_OUT = "training.arrow", "held-out.arrow"
_SAMPLED_MORE = 1.1
"""Sampled text for measuring comes on top of what is learned from."""


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """What a run reads."""

    training: Any
    """Rows, as a data set."""
    held_out: Any

    @property
    def tokens(self) -> int:
        """Tokens on disk to learn from; what is more of a run is repetition."""
        return row_count(self.training)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How much of what becomes rows."""

    options: UptrainOptions
    task: Task
    tokens: int
    """To learn from, at most; what there is less is repeated."""
    device: torch.device
    """Where the original writes."""


def prepare_text(work: Path, reading: Reading, original: PreTrainedModel | None, progress: Progress) -> TrainingText:
    """Have the rows on disk, if they are not there from an interrupted run.

    Args:
        work: Where they go.
        reading: What becomes rows, and how.
        original: Writes the text of `self`.
        progress: Told of samples and rows.

    Raises:
        TextError: The text is unreadable or too short, or the tokenizer does not fit.
    """
    training, held_out = work / _TRAINING, work / _HELD_OUT
    if not (training.is_file() and held_out.is_file()):
        _write(work, reading, original, progress)
    return TrainingText(training=read_blocks(training), held_out=read_blocks(held_out))


def _write(work: Path, reading: Reading, original: PreTrainedModel | None, progress: Progress) -> None:
    task = reading.task
    training = _Sink(work / _TRAINING, task, max(1, -(-reading.tokens // task.row_tokens)), count=lambda row: 1)
    held_out = _Sink(work / _HELD_OUT, task, reading.options.held_out_tokens, count=_tokens_of)
    apart = _fill_apart(held_out, task)
    is_sampled = SELF in reading.options.data
    stream = _sampled(work, reading, original, progress) if is_sampled else task.training()
    for key, item in stream:
        if apart is None and is_held_out(key):
            held_out.add(item)
        elif key not in (apart or ()):
            progress.stage("packing", training.add(item), training.wanted)
        if training.is_full and held_out.is_full:
            break
    for sink, what in ((training, "to learn from"), (held_out, "to measure on")):
        if not sink.finish():
            raise task.too_short(what)


def _tokens_of(row: TrainingRow) -> int:
    return sum(len(numbers) for name, numbers in row.items() if name != "position_ids")


def _fill_apart(held_out: "_Sink", task: Task) -> set[int] | None:
    """Fill the held-out part with text of its own, where there is some; return its keys."""
    stream = task.held_out()
    if stream is None:
        return None
    keys = set()
    for key, item in stream:
        keys.add(key)
        held_out.add(item)
        if held_out.is_full:
            break
    return keys


def _sampled(
    work: Path, reading: Reading, original: PreTrainedModel | None, progress: Progress
) -> Iterator[tuple[int, list[int]]]:
    if original is None:
        raise RuntimeError("the task has refused --data self without the original")
    options, path = reading.options, reading.options.samples or work / "samples.jsonl"
    placed: Any = original
    placed.to(reading.device)
    write_samples(
        path,
        original,
        reading.task.tokenizer,
        tokens=int(reading.tokens * _SAMPLED_MORE) + options.held_out_tokens,
        context=reading.task.row_tokens,
        seed=options.seed,
        advance=progress.part("sampling"),
    )
    placed.to("cpu")  # where sharding expects it
    return enumerate(read_samples(path))


class _Sink:
    """What is read on its way into a file of rows, until they count for as much as is wanted."""

    def __init__(self, path: Path, task: Task, wanted: int, *, count: Callable[[TrainingRow], int]) -> None:
        self.wanted, self._count, self._done = wanted, count, 0
        self._file, self._rows_of = BlockFile(path, task.columns), task.packing()

    @property
    def is_full(self) -> bool:
        """Whether there is as much as is wanted."""
        return self._done >= self.wanted

    def add(self, item: Any) -> int:
        """Take in a document or a pair; return what the rows that are full with it count for."""
        before = self._done
        for row in self._rows_of(item):
            if not self.is_full:
                self._file.add(row)
                self._done += self._count(row)
        return self._done - before

    def finish(self) -> bool:
        """Close the file; return whether there is a row in it."""
        if self._done:
            self._file.finish()
        return bool(self._done)
