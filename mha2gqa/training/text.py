"""Decides what a run reads, and has it as blocks on disk: to learn from, and, never overlapping, to measure on.

Text is read in order, shuffled through a buffer, tokenised once, and only as far as the run needs it: a corpus may be
larger than the disk.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.options import UptrainOptions
from mha2gqa.reference import corpus
from mha2gqa.texts.documents import read_documents
from mha2gqa.texts.find import SELF
from mha2gqa.training.blocks import BlockFile, Packer, read_blocks, tokenise
from mha2gqa.training.documents import cut_if_few, is_held_out, key_of, shuffled
from mha2gqa.training.samples import read_samples, write_samples
from mha2gqa.training.subject import Subject

_TRAINING, _HELD_OUT = "training.arrow", "held-out.arrow"
_SAMPLED_MORE = 1.1
"""Sampled text for measuring comes on top of what is learned from."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """What a run reads."""

    description: str
    training: Any
    """Blocks, as a data set."""
    held_out: Any


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How text becomes blocks."""

    tokenizer: PreTrainedTokenizerBase
    packer: Callable[[], Packer]
    vocabulary: int
    tokens: int
    """To learn from, at most; what there is less is repeated."""
    held_out_tokens: int
    device: torch.device
    """Where the original writes."""


def check_data(options: UptrainOptions, subject: Subject) -> None:
    """Refuse data that is missing, before a model is loaded.

    Raises:
        TextError: There is none, it stands beside `self`, or a file does not exist or is empty.
    """
    if SELF in options.data and len(options.data) > 1:
        raise TextError(f"--data {SELF} stands beside other text", expected=f"either {SELF} or files and data sets")
    if not options.data and not subject.of_reference:
        raise TextError(
            "Uptraining needs text, and none was given",
            expected="--data with files or Hub data sets like what the model was trained on",
            remedy="Or let the original write it: --data self",
        )
    if SELF in options.data and subject.original is None:
        raise TextError("--data self is written by the original, which is not at hand", remedy="Name it: --against")
    for names in (() if SELF in options.data else options.data, options.held_out):
        next(read_documents(names, options.column, "calibration"), None)


def describe(options: UptrainOptions, subject: Subject) -> str:
    """Return where the text comes from, as a phrase."""
    if SELF in options.data:
        return f"text sampled from the original itself (temperature 1, seed {options.seed})"
    return f"text from {', '.join(options.data)}" if options.data else "training text of the reference checkpoint"


def prepare_text(
    work: Path,
    options: UptrainOptions,
    subject: Subject,
    reading: Reading,
    original: PreTrainedModel | None,
    progress: Callable[[str, int, int], object],
) -> Text:
    """Have the blocks on disk, if they are not there from an interrupted run.

    Args:
        work: Where they go.
        options: What to read.
        subject: What is trained.
        reading: How it becomes blocks.
        original: Writes the text of `self`.
        progress: Told of samples and blocks.

    Raises:
        TextError: The text is unreadable or too short, or the tokenizer does not fit.
    """
    training, held_out = work / _TRAINING, work / _HELD_OUT
    if not (training.is_file() and held_out.is_file()):
        _write(work, options, reading, original, progress)
    return Text(description=describe(options, subject), training=read_blocks(training), held_out=read_blocks(held_out))


def _write(
    work: Path,
    options: UptrainOptions,
    reading: Reading,
    original: PreTrainedModel | None,
    progress: Callable[[str, int, int], object],
) -> None:
    training = _Sink(work / _TRAINING, reading.packer(), reading.tokens)
    held_out = _Sink(work / _HELD_OUT, reading.packer(), reading.held_out_tokens)
    apart = _fill_apart(held_out, options, reading)
    stream = _sampled(work, options, reading, original, progress) if SELF in options.data else _read(options, reading)
    for key, ids in stream:
        if apart is None and is_held_out(key):
            held_out.add(ids)
        elif key not in (apart or ()):
            progress("packing", training.add(ids), training.wanted)
        if training.is_full and held_out.is_full:
            break
    for sink, what in ((training, "to learn from"), (held_out, "to measure on")):
        sink.finish(what)


def _fill_apart(held_out: "_Sink", options: UptrainOptions, reading: Reading) -> set[int] | None:
    """Fill the held-out part with text of its own, where there is some; return its documents' keys."""
    if options.held_out:
        documents = read_documents(options.held_out, options.column, "evaluation")
    elif not options.data:
        documents = corpus.read_documents(corpus.held_out_files())
    else:
        return None
    keys = set()
    for key, ids in _with_keys(documents, reading):
        keys.add(key)
        held_out.add(ids)
        if held_out.is_full:
            break
    return keys


def _read(options: UptrainOptions, reading: Reading) -> Iterator[tuple[int, list[int]]]:
    if not options.data:
        documents = corpus.read_documents(corpus.training_files())
    else:
        documents = cut_if_few(read_documents(options.data, options.column, "calibration"))
    return _with_keys(shuffled(documents, options.seed), reading)


def _with_keys(documents: Iterable[str], reading: Reading) -> Iterator[tuple[int, list[int]]]:
    one, other = itertools.tee(documents)
    return zip(map(key_of, one), tokenise(other, reading.tokenizer, reading.vocabulary), strict=True)


def _sampled(
    work: Path,
    options: UptrainOptions,
    reading: Reading,
    original: PreTrainedModel | None,
    progress: Callable[[str, int, int], object],
) -> Iterator[tuple[int, list[int]]]:
    if original is None:
        raise RuntimeError("check_data has refused --data self without the original")
    path = options.samples or work / "samples.jsonl"
    placed: Any = original
    placed.to(reading.device)
    write_samples(
        path,
        original,
        reading.tokenizer,
        tokens=int(reading.tokens * _SAMPLED_MORE) + reading.held_out_tokens,
        context=reading.packer().context,
        seed=options.seed,
        progress=partial(progress, "sampling"),
    )
    placed.to("cpu")  # where sharding expects it
    return enumerate(read_samples(path))


class _Sink:
    """Documents on their way into a file of blocks, up to a number of tokens."""

    def __init__(self, path: Path, packer: Packer, tokens: int) -> None:
        self.wanted = max(1, -(-tokens // packer.context))
        self._file, self._packer = BlockFile(path), packer

    @property
    def is_full(self) -> bool:
        """Whether there are as many blocks as are wanted."""
        return self._file.blocks >= self.wanted

    def add(self, ids: list[int]) -> int:
        """Take in a document; return how many blocks are full with it."""
        before = self._file.blocks
        for row in self._packer.add(ids):
            if not self.is_full:
                self._file.add(row)
        return self._file.blocks - before

    def finish(self, what: str) -> None:
        """Close the file.

        Raises:
            TextError: There is not one block.
        """
        if not self._file.blocks:
            raise TextError(
                f"The text has not one block of {self._packer.context} tokens {what}",
                expected=f"at least {20 * self._packer.context:,} tokens, of which a twentieth is kept aside",
                remedy="Give more text with --data, or a smaller --context",
            )
        self._file.finish()
