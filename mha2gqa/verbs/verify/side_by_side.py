"""What both models write after the same prompts, greedily, and how far it is the same.

A chat model answers questions of its own template, each until it ends its turn; any other goes on with the beginnings
of a few blocks of the text. Of the original a few tokens are written first: as many as it then writes in a minute and a
half, or the context has room for, are compared.

Legend: N prompts, T tokens of the longest, W tokens that are written.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.model.feed import attempt
from mha2gqa.model.kind import kind_of
from mha2gqa.texts.spans import render
from mha2gqa.verbs.verify.measures import Continuation

LENGTHS = (16, 64, 256)
"""Tokens to which answers may agree."""
_BLOCKS, _BLOCK_TOKENS, _BLOCK_LENGTH = 3, 32, 48
"""Beginnings of blocks, their tokens at most, and what is written after each."""
_SECONDS = 45
"""What writing the whole length may take, for each model, by the first tokens."""
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Think step by step.",
    "Write a Python function that returns the n-th Fibonacci number, and say how it works.",
    "Why is the sky blue? Answer in two sentences.",
    "Translate into German: The weather was fine, so we walked along the river.",
    "Give me five ideas for the birthday party of a ten-year-old.",
)


@dataclass(frozen=True)
class _Prompts:
    """What is read, padded on the left."""

    ids_NT: torch.Tensor
    mask_NT: torch.Tensor
    shown: Sequence[str]
    lengths: Sequence[int]
    """Numbers of tokens that may be written, in ascending order."""
    end: int | None
    """The token behind which nothing is compared."""


@torch.inference_mode()
def continuations(
    original: PreTrainedModel, converted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks_NT: torch.Tensor
) -> tuple[Continuation, ...]:
    """Have both models write; nothing where the original's class does not generate.

    Args:
        original: The original.
        converted: The converted model.
        tokenizer: Of both; with a chat template it makes prompts of questions.
        blocks_NT: Text, of which there are prompts where it has none.
    """
    if not kind_of(original).generates:
        return ()
    prompts = _questions(tokenizer, converted) or _beginnings(tokenizer, blocks_NT)
    room = _room(converted, prompts.ids_NT.shape[1])
    lengths = [min(length, room) for length in prompts.lengths]
    started = time.monotonic()
    written = attempt(lambda: _write(original, prompts, lengths[0]))
    if isinstance(written, str):
        return ()
    seconds = (time.monotonic() - started) / lengths[0]
    count = max([length for length in lengths if length * seconds <= _SECONDS], default=lengths[0])
    first_NW = written if count == lengths[0] else _write(original, prompts, count)
    second_NW = _write(converted, prompts, count)
    pairs = zip(prompts.shown, first_NW.tolist(), second_NW.tolist(), strict=True)
    return tuple(_compared(tokenizer, shown, first, second, prompts.end) for shown, first, second in pairs)


def agreement(found: Sequence[Continuation]) -> dict[int, float]:
    """Return for each length that was written the share of prompts after which so many tokens are the same.

    An answer that is over before is the same where all of it is.
    """
    written = max((one.written for one in found), default=0)
    shares = {}
    for length in LENGTHS:
        if length <= written:
            shares[length] = sum(one.agreed >= min(length, one.tokens) for one in found) / len(found)
    return shares


def _questions(tokenizer: PreTrainedTokenizerBase, converted: PreTrainedModel) -> _Prompts | None:
    """Return the questions in the tokenizer's chat template; None where there is none, or it takes no question."""
    if not tokenizer.chat_template or kind_of(converted).has_encoder:
        return None
    try:
        texts = [render(tokenizer, [{"role": "user", "content": one}], opened=True) for one in QUESTIONS]
    except TextError:
        return None
    made = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, made))
    if _room(converted, longest) < LENGTHS[0]:
        return None
    ids_NT = torch.zeros(len(made), longest, dtype=torch.int64)
    mask_NT = torch.zeros_like(ids_NT)
    for number, ids in enumerate(made):
        ids_NT[number, longest - len(ids) :] = torch.tensor(ids)
        mask_NT[number, longest - len(ids) :] = 1
    return _Prompts(ids_NT, mask_NT, QUESTIONS, LENGTHS, tokenizer.eos_token_id)


def _beginnings(tokenizer: PreTrainedTokenizerBase, blocks_NT: torch.Tensor) -> _Prompts:
    """Return the beginnings of a few blocks, evenly spaced."""
    count, length = min(_BLOCKS, len(blocks_NT)), min(_BLOCK_TOKENS, blocks_NT.shape[1] // 2)
    chosen = [number * len(blocks_NT) // count for number in range(count)]
    ids_NT = blocks_NT[chosen, : max(1, length)]
    shown = [_text(tokenizer, ids) for ids in ids_NT.tolist()]
    return _Prompts(ids_NT, torch.ones_like(ids_NT), shown, (_BLOCK_LENGTH,), None)


def _room(converted: PreTrainedModel, prompt: int) -> int:
    """Return how many tokens can be written: a table of positions may end where the original's formula does not."""
    most = getattr(converted.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return max(1, most - prompt) if isinstance(most, int) else LENGTHS[-1]


def _write(model: PreTrainedModel, prompts: _Prompts, count: int) -> torch.Tensor:
    generate: Any = model.generate
    fed = {"input_ids": prompts.ids_NT.to(model.device)}
    if not prompts.mask_NT.all():
        fed["attention_mask"] = prompts.mask_NT.to(model.device)
    written_NW: torch.Tensor = generate(**fed, max_new_tokens=count)
    return written_NW[:, -count:].cpu()


def _compared(
    tokenizer: PreTrainedTokenizerBase, shown: str, first: list[int], second: list[int], end: int | None
) -> Continuation:
    agreed = next((at for at, (one, other) in enumerate(zip(first, second, strict=True)) if one != other), len(first))
    ends = [ids.index(end) + 1 if end in ids else len(ids) for ids in (first, second)]
    return Continuation(
        prompt=shown,
        original=_text(tokenizer, first[: ends[0]]),
        converted=_text(tokenizer, second[: ends[1]]),
        agreed=min(agreed, ends[0]),
        tokens=ends[0],
        written=len(first),
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))
