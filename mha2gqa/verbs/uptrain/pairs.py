"""The task of encoder-decoders: a target from a source, two columns of a table, padded batch by batch.

The encoder reads the source and the decoder the target before each token that it predicts (teacher forcing), as in
transformers' `run_summarization` and `run_translation`, whose collator makes the batches. A source and all its targets
are learned from or measured on, never both.

Legend: B pairs of a batch, S tokens of a source, T tokens of a target, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.bart.modeling_bart import shift_tokens_right

from mha2gqa.errors import TextError
from mha2gqa.model.divergence import target_losses
from mha2gqa.model.load import context_length, load_tokenizer
from mha2gqa.texts.blocks import check_vocabulary
from mha2gqa.texts.documents import Pair, read_pairs
from mha2gqa.texts.tables import Purpose
from mha2gqa.texts.words import SELF, check_words
from mha2gqa.verbs.uptrain.blocks import TrainingRow, key_of, shuffled
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.subject import Subject
from mha2gqa.verbs.uptrain.text import Batch, Keyed, LossFunction

SOURCE_TOKENS, TARGET_TOKENS = 512, 128
"""Where the user does not say, and the model reads as many."""
_AT_ONCE = 256
"""Pairs that are tokenised at a time."""


def mean_cross_entropy(outputs: Any, labels_BT: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Return the loss of a batch in nats, divided by the tokens of the whole step.

    Args:
        outputs: Of the model, with `logits` `[B, T, V]`.
        labels_BT: What they predict; -100 for nothing.
        num_items_in_batch: The tokens of the step; None is those of the batch.
    """
    losses, count = target_losses(outputs.logits, labels_BT)
    return losses.sum() / (count if num_items_in_batch is None else num_items_in_batch)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sources and targets."""

    options: UptrainOptions
    tokenizer: PreTrainedTokenizerBase
    source_tokens: int
    target_tokens: int
    vocabulary: int
    outline: Any
    """The model on the meta device: it knows how its decoder's inputs follow from the labels."""
    mixes: bool = False
    columns: tuple[str, ...] = ("input_ids", "labels")
    states: str = "decoder_hidden_states"
    loss: LossFunction = mean_cross_entropy
    """Over the tokens of a whole step: these classes take the mean of each batch."""

    @property
    def row_tokens(self) -> int:
        """Of a pair at full length."""
        return self.source_tokens + self.target_tokens

    def check(self) -> None:
        """Refuse what does not fit."""
        options = self.options
        for name in ("column", "samples", "learn_from"):
            if getattr(options, name) is not None:
                raise TextError(
                    f"--{name.replace('_', '-')} is for running text, and this model learns from pairs",
                    expected="--source-column and --target-column",
                )
        check_words(options.data)
        check_words(options.held_out, ())
        if not options.data or SELF in options.data:
            given = f"--data {SELF} has text written" if SELF in options.data else "none were given"
            raise TextError(
                f"An encoder-decoder learns from pairs, and {given}",
                expected="--data with a table of a column of sources and one of targets",
                remedy="Name its columns with --source-column and --target-column",
            )
        if self.tokenizer.pad_token_id is None:
            raise TextError("The tokenizer has no token for padding", expected="pad_token in its configuration")
        set_languages(self.tokenizer, options.source_lang, options.target_lang)
        for names in (options.data, options.held_out):
            next(self._read(names, "calibration"), None)

    def describe(self) -> str:
        """Return where the pairs come from, and how they are counted."""
        return f"pairs from {', '.join(self.options.data)}, each counted at its full length of {self.row_tokens} tokens"

    def too_short(self, what: str) -> TextError:
        """Return the refusal of too few pairs."""
        return TextError(
            f"The tables have not one pair {what}",
            expected="a few dozen pairs, of which a twentieth is kept aside",
            remedy="Give more with --data, or some to measure on with --held-out",
        )

    def fitted(self, model: PreTrainedModel) -> Self:
        """Return the task as it is."""
        return self

    def training(self) -> Keyed:
        """Yield pairs in the order of the seed, as tokens."""
        pairs = self._read(self.options.data, "calibration")
        return self._with_keys(shuffled(pairs, self.options.seed, lambda pair: len(pair.source) + len(pair.target)))

    def held_out(self) -> Keyed | None:
        """Return the pairs to measure on."""
        names = self.options.held_out
        return self._with_keys(self._read(names, "evaluation")) if names else None

    def _read(self, names: Sequence[str], purpose: Purpose) -> Iterator[Pair]:
        return read_pairs(names, (self.options.source_column, self.options.target_column), purpose)

    def _with_keys(self, pairs: Iterable[Pair]) -> Keyed:
        """Yield the tokens of each pair, cut to their full length, with the special tokens of the tokenizer."""
        prefix, stream = self.options.source_prefix or "", iter(pairs)
        while some := list(itertools.islice(stream, _AT_ONCE)):
            sources = [prefix + pair.source for pair in some]
            read = self.tokenizer(sources, truncation=True, max_length=self.source_tokens)["input_ids"]
            targets = [pair.target for pair in some]
            answers = self.tokenizer(text_target=targets, truncation=True, max_length=self.target_tokens)["input_ids"]
            for pair, ids, labels in zip(some, read, answers, strict=True):
                check_vocabulary(max([*ids, *labels], default=0), self.vocabulary)
                yield key_of(pair.source), {"input_ids": ids, "labels": labels}

    def packing(self) -> Callable[[Any], Iterator[TrainingRow]]:
        """Return what makes a row of each pair."""
        return lambda row: iter((row,))

    @cached_property
    def _collator(self) -> Callable[..., Any]:
        return DataCollatorForSeq2Seq(self.tokenizer, return_tensors="pt")

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Return sources `[B, S]`, their mask, targets as labels `[B, T]`, and what the decoder reads before each."""
        batch = dict(self._collator([{name: list(map(int, row[name])) for name in self.columns} for row in rows]))
        return batch | {"decoder_input_ids": self._shift(batch["labels"])}

    def _shift(self, labels_BT: torch.Tensor) -> torch.Tensor:
        shifted_BT: torch.Tensor
        if hasattr(self.outline, "prepare_decoder_input_ids_from_labels"):
            shifted_BT = self.outline.prepare_decoder_input_ids_from_labels(labels=labels_BT.clone())
        else:  # M2M-100's own forward does it so
            config = self.outline.config
            shifted_BT = shift_tokens_right(labels_BT, config.pad_token_id, config.decoder_start_token_id)
        return shifted_BT

    def targets(self, labels_BT: torch.Tensor) -> torch.Tensor:
        """Return the labels, which logits of their own position predict."""
        return labels_BT


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Tell a tokenizer of several languages (mBART, M2M-100, NLLB) which ones are read and answered.

    Raises:
        TextError: It does not know one, or any; or it knows several, and is not told that of the targets.
    """
    given = {"src_lang": source, "tgt_lang": target}  # transformers' names
    named = [language for language in given.values() if language is not None]
    if not hasattr(tokenizer, "src_lang"):
        if named:
            raise TextError(f"The tokenizer knows no languages, and {named[0]!r} is given", remedy="Leave it out")
        return
    if target is None and tokenizer.tgt_lang is None:
        raise TextError("The tokenizer knows several languages", expected="that of the targets: --target-lang")
    try:
        for name, language in given.items():
            setattr(tokenizer, name, language or getattr(tokenizer, name))
        special = [*tokenizer("")["input_ids"], *tokenizer(text_target="")["input_ids"]]
    except KeyError:
        special = [tokenizer.unk_token_id]
    if tokenizer.unk_token_id in special:
        told = " or ".join(repr(getattr(tokenizer, name)) for name in given)
        raise TextError(f"The tokenizer does not know the language {told}", expected="its own names of languages")


def pairs(subject: Subject, options: UptrainOptions) -> Pairs:
    """Return the task of an encoder-decoder.

    Raises:
        TextError: There is no tokenizer, or sources or targets are longer than the model reads.
    """
    model = subject.converted.architecture
    most = context_length(model.config, None)
    return Pairs(
        options=options,
        tokenizer=load_tokenizer(subject.directory),
        source_tokens=context_length(model.config, options.context or min(SOURCE_TOKENS, most)),
        target_tokens=context_length(
            model.config, options.target_context or min(TARGET_TOKENS, most), "--target-context"
        ),
        vocabulary=model.vocabulary,
        outline=model.outline,
    )
