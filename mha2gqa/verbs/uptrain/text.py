"""Has what a run reads as rows on disk: to learn from, and, never overlapping, to measure on.

What is read and how it becomes rows and batches differs between kinds of models that learn, and a `Task` says it.
There are two: `running_text.py` (a decoder predicts the next token of text) and `pairs.py` (an encoder-decoder predicts
a target from a source). Everything else of a run is the same for both, and does not ask of which kind a model is.

Data is read in order, shuffled through a buffer, tokenised once, and only as far as the run needs it: a corpus may be
larger than the disk.

Legend: B rows of a batch, T tokens that logits are given for, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.progress import Progress
from mha2gqa.texts.words import SELF
from mha2gqa.verbs.uptrain.blocks import BlockFile, TrainingRow, is_held_out, read_blocks
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.samples import read_samples, write_samples

Batch: TypeAlias = dict[str, torch.Tensor]
"""Arguments of a forward pass, and `labels`."""
Keyed: TypeAlias = Iterator[tuple[int, Any]]
"""What `Task.packing` takes, each with a key that its copies share."""
LossFunction: TypeAlias = Callable[..., torch.Tensor]
"""A `compute_loss_func` of transformers' Trainer."""
_TRAINING, _HELD_OUT = "training.arrow", "held-out.arrow"
_OF_TOKENS = ("position_ids", "learned")
"""Columns that say something of each token, and are none."""
_HELD_OUT_TOKENS = 4096, 32_768
_SAMPLED_MORE = 1.1
"""Sampled text for measuring comes on top of what is learned from."""


class Task(Protocol):
    """How models of a kind learn."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The converted checkpoint's."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a row's lists of numbers."""

    @property
    def states(self) -> str:
        """Name of the outputs of the layers whose logits are compared, the embeddings first."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a row, at most."""

    @property
    def mixes(self) -> bool:
        """Whether a row holds several documents, kept apart in the attention."""

    @property
    def loss(self) -> LossFunction | None:
        """Cross-entropy where the class's own does not count tokens over a whole step; None is the class's own."""

    def check(self) -> None:
        """Refuse options and data that do not fit, before a model is loaded.

        Raises:
            TextError: The data is missing or unreadable, or an option is another task's.
        """

    def describe(self) -> str:
        """Return what is read, as a phrase."""

    def too_short(self, what: str) -> TextError:
        """Return the refusal of data that makes no row `what` (to learn from, or to measure on)."""

    def fitted(self, model: PreTrainedModel) -> Self:
        """Return the task as the loaded model takes it."""

    def training(self) -> Keyed:
        """Yield what there is to learn from, in the order of the seed."""

    def held_out(self) -> Keyed | None:
        """Return what there is to measure on, or None where a part of the training text is kept aside."""

    def packing(self) -> Callable[[Any], Iterator[TrainingRow]]:
        """Return what makes rows of each that `training` and `held_out` yield."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Return a batch of rows."""

    def targets(self, labels_BT: torch.Tensor) -> torch.Tensor:
        """Return int64 `[B, T]`: the token that the logits of each position predict, -100 for none."""


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """What a run reads."""

    training: Any
    """Rows, as a data set."""
    held_out: Any

    @property
    def tokens(self) -> int:
        """Tokens on disk to learn from, padding of blocks included; what is more of a run is repetition."""
        names = [name for name in self.training.column_names if name not in _OF_TOKENS]
        chunks = (chunk for name in names for chunk in self.training.data.table.column(name).chunks)
        return sum(int(chunk.value_lengths().sum().as_py() or 0) for chunk in chunks)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How much of what becomes rows."""

    options: UptrainOptions
    task: Task
    tokens: int
    """To learn from, at most; what there is less is repeated."""
    device: torch.device
    """Where the original writes."""

    @property
    def held_out_tokens(self) -> int:
        """Tokens to measure on, at most: of a short run few, since they are read a dozen times."""
        least, most = _HELD_OUT_TOKENS
        return self.options.held_out_tokens or max(least, min(most, self.tokens // 16))


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
    held_out = _Sink(work / _HELD_OUT, task, reading.held_out_tokens, count=_tokens_of)
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
    return sum(len(numbers) for name, numbers in row.items() if name not in _OF_TOKENS)


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
        tokens=int(reading.tokens * _SAMPLED_MORE) + reading.held_out_tokens,
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
