"""Decides which text a command works on, and says where it comes from.

What the user named with --data; else, for the reference checkpoint, its own held-out or calibration
text; else (or for the word `self`) text that the model writes itself. For what only runs through the layers of a model
and is not learned from, tokens drawn at random may do.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.files.source import Source
from mha2gqa.progress import Advance
from mha2gqa.reference import corpus
from mha2gqa.texts.blocks import pack_marked, random_blocks
from mha2gqa.texts.chats import Document
from mha2gqa.texts.documents import read_documents
from mha2gqa.texts.tables import Purpose, named
from mha2gqa.texts.words import RANDOM, SELF, check_words
from mha2gqa.texts.written import sample_text


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Text, ready for a model."""

    tokens_NT: torch.Tensor
    """int64, N blocks of T tokens, on the CPU."""
    description: str
    """Where the text comes from, as a phrase."""
    sampled: bool
    """Whether the model wrote it."""
    answers_NT: torch.Tensor | None = None
    """bool, which tokens are answers of a conversation; None where there are none."""


def find_blocks(
    data: Sequence[str],
    *,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    model: Callable[[], PreTrainedModel],
    context: int,
    tokens: int,
    purpose: Purpose,
    column: str | None = None,
    seed: int = 0,
    least: int = 1,
    advance: Advance = lambda done, total: None,
) -> Blocks:
    """Find the text for a purpose, as blocks.

    Args:
        data: Files or Hub data sets, or `self` or `random` alone; empty chooses by the source.
        source: The original; the reference checkpoint has text of its own.
        tokenizer: The original's.
        model: Gives the original; called only when it has to write the text, or tokens are drawn of its vocabulary.
        context: Tokens of a block, T.
        tokens: How many tokens to take at most.
        purpose: `evaluation` or `calibration`; the reference's texts for the two do not overlap.
        column: Column of tables that holds the text.
        seed: Of the sampling.
        least: How many blocks there must be.
        advance: Told of the tokens that the model writes.

    Raises:
        TextError: The text is missing, unreadable or too short, or would be evaluated on and is none.
    """
    check_words(data, (SELF,) if purpose == "evaluation" else (SELF, RANDOM))
    documents: Iterable[Document]
    begun: list[str] = []
    if RANDOM in data:
        known = model().config.get_text_config(decoder=True).vocab_size
        wanted = max(tokens, least * context)
        drawn_NT = random_blocks(tokenizer, vocabulary=known, context=context, tokens=wanted, seed=seed)
        return Blocks(tokens_NT=drawn_NT, description=f"tokens drawn at random (seed {seed})", sampled=False)
    if not data and source.is_reference:
        is_held_out = purpose == "evaluation"
        files = corpus.held_out_files() if is_held_out else corpus.calibration_files()
        word = "held-out" if is_held_out else "calibration"
        documents = corpus.read_documents(files)
        description = f"{word} text of the reference checkpoint ({len(files)} modules of the standard library)"
    elif not data or SELF in data:
        wanted = max(tokens, least * context)
        written_NT = sample_text(model(), tokenizer, tokens=wanted, context=context, seed=seed, advance=advance)
        description = f"text sampled from the original itself (temperature 1, seed {seed})"
        return Blocks(tokens_NT=written_NT, description=description, sampled=True)
    else:
        documents, description = read_documents(data, column, purpose, begun.append), ""
    blocks_NT, answers_NT = pack_marked(documents, tokenizer, context=context, tokens=tokens, least=least)
    description = description or _files(data, begun)
    if answers_NT is not None:
        way = "by the chat template" if tokenizer.chat_template else "as plain text, without a chat template"
        description += f" ({way}; {answers_NT.float().mean():.0%} of the tokens are answers)"
    return Blocks(tokens_NT=blocks_NT, description=description, sampled=False, answers_NT=answers_NT)


def _files(data: Sequence[str], begun: Sequence[str]) -> str:
    """Return which files a text is from, and which of them it did not come to."""
    unread = [one for one in data if named(one).name not in begun]
    if not unread:
        return f"text from {', '.join(data)}"
    mixed = any(named(one).weight is not None for one in data)
    remedy = "more --tokens reach them" if mixed else f"{' '.join(f'--data {one}:1' for one in data)} mixes them"
    return f"text from {', '.join(begun)}, and none from {', '.join(unread)} ({remedy})"
