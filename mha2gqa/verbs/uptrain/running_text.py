"""The task of decoders: the next token of running text, packed into blocks (`blocks.py`).

Text is what the user names, or for the reference checkpoint its own. What the original writes itself is sampled by
`text.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.model.load import context_length, load_tokenizer
from mha2gqa.reference import corpus
from mha2gqa.texts.chats import Document, Record
from mha2gqa.texts.documents import read_documents
from mha2gqa.texts.words import SELF, check_words
from mha2gqa.verbs.uptrain.blocks import (
    COLUMNS,
    TrainingRow,
    collate,
    cut_if_few,
    keeps_documents_apart,
    key_of,
    packer_for,
    shuffled,
    tokenise,
)
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.subject import Subject
from mha2gqa.verbs.uptrain.text import Batch, Keyed

_OF_PAIRS = ("source_column", "target_column", "source_prefix", "source_lang", "target_lang", "target_context")


@dataclass(frozen=True, kw_only=True)
class RunningText:
    """Blocks of documents."""

    options: UptrainOptions
    of_reference: bool
    """Whether there is text where none is named."""
    has_original: bool
    tokenizer: PreTrainedTokenizerBase
    row_tokens: int
    vocabulary: int
    mixes: bool = True
    columns: tuple[str, ...] = COLUMNS
    states: str = "hidden_states"
    loss: None = None

    def check(self) -> None:
        """Refuse what does not fit."""
        options = self.options
        if given := [name for name in _OF_PAIRS if getattr(options, name) is not None]:
            raise TextError(
                f"--{given[0].replace('_', '-')} is for pairs, and this model predicts the next token of text",
                expected="an encoder-decoder",
                remedy="Leave it out",
            )
        check_words(options.data)
        check_words(options.held_out, ())
        if not options.data and not self.of_reference:
            raise TextError(
                "Uptraining needs text, and none was given",
                expected="--data with files or Hub data sets like what the model was trained on",
                remedy="Or let the original write it: --data self",
            )
        if SELF in options.data and not self.has_original:
            raise TextError("--data self is written by the original, which is not at hand", remedy="Name it: --against")
        named = [*(() if SELF in options.data else options.data), *options.held_out]
        found = [next(read_documents((name,), options.column, "calibration")) for name in named]
        for one in found:
            tokenise(one, self.tokenizer, self.vocabulary)
        if options.learn_from == "answers" and not any(isinstance(one, Record) for one in found):
            raise TextError(
                "--learn-from answers needs conversations, and the text holds none",
                expected="--data with messages, conversations, or prompts and completions",
                remedy="Leave it out",
            )

    def describe(self) -> str:
        """Return where the text comes from, as a phrase."""
        options = self.options
        if SELF in options.data:
            return f"text sampled from the original itself (temperature 1, seed {options.seed})"
        if not options.data:
            return "training text of the reference checkpoint"
        answers = " (answers alone)" if options.learn_from == "answers" else ""
        return f"text from {', '.join(options.data)}{answers}"

    def too_short(self, what: str) -> TextError:
        """Return the refusal of text that makes no block."""
        return TextError(
            f"The text has not one block of {self.row_tokens} tokens {what}",
            expected=f"at least {20 * self.row_tokens:,} tokens, of which a twentieth is kept aside",
            remedy="Give more text with --data, or a smaller --context",
        )

    def fitted(self, model: PreTrainedModel) -> Self:
        """Return the task with documents mixed in a block if the model keeps them apart."""
        return replace(self, mixes=keeps_documents_apart(model))

    def training(self) -> Keyed:
        """Yield documents in the order of the seed, as tokens."""
        options = self.options
        documents: Iterable[Document]
        if not options.data:
            documents = corpus.read_documents(corpus.training_files())
        else:
            documents = cut_if_few(read_documents(options.data, options.column, "calibration"))
        return self._with_keys(shuffled(documents, options.seed))

    def held_out(self) -> Keyed | None:
        """Return the documents to measure on."""
        options = self.options
        if options.held_out:
            return self._with_keys(read_documents(options.held_out, options.column, "evaluation"))
        return None if options.data else self._with_keys(corpus.read_documents(corpus.held_out_files()))

    def _with_keys(self, documents: Iterable[Document]) -> Keyed:
        return ((key_of(one), tokenise(one, self.tokenizer, self.vocabulary)) for one in documents)

    def packing(self) -> Callable[[Any], Iterator[TrainingRow]]:
        """Return what packs documents into blocks."""
        learn_from = self.options.learn_from
        return packer_for(self.tokenizer, self.row_tokens, mixes=self.mixes, learn_from=learn_from).add

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Return a batch of blocks."""
        return collate(rows, mixes=self.mixes)

    def targets(self, labels_BT: torch.Tensor) -> torch.Tensor:
        """Return the next token of each position."""
        targets_BT = torch.full_like(labels_BT, -100)
        targets_BT[:, :-1] = labels_BT[:, 1:]
        return targets_BT


def running_text(subject: Subject, options: UptrainOptions) -> RunningText:
    """Return the task of a decoder.

    Raises:
        TextError: There is no tokenizer, or the context is longer than the model reads.
    """
    model = subject.converted.architecture
    return RunningText(
        options=options,
        of_reference=subject.of_reference,
        has_original=subject.original is not None,
        tokenizer=load_tokenizer(subject.directory),
        row_tokens=context_length(model.config, options.context),
        vocabulary=model.vocabulary,
    )
