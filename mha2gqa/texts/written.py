"""Text that a model writes itself: sampled at temperature 1, from BOS, or from random tokens without one.

A chat model's is half conversations: it is given its template's opening of a user's turn, writes the question, then
answers it, and so on. What the template puts between turns is forced upon each block where its turn ends, so that
blocks of one batch are written side by side without padding, in whatever state each is.

Legend: N blocks, B of a batch, T tokens of a block, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import jinja2
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mha2gqa.errors import TextError
from mha2gqa.model.kind import kind_of
from mha2gqa.progress import Advance
from mha2gqa.texts.blocks import check_vocabulary

_BATCH = 32
"""Blocks that are sampled at a time."""
_QUESTION = 96
"""Tokens of a question, at most: a model that goes on asking never answers."""
_MARKS = ("first question", "its answer", "second question")


def sample_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    tokens: int,
    context: int,
    seed: int,
    advance: Advance = lambda done, total: None,
) -> torch.Tensor:
    """Have a model write blocks of text.

    The same seed gives the same blocks on the same device and versions.

    Args:
        model: A causal language model, as `models.load_model` gives it.
        tokenizer: Knows BOS, and how conversations are written; None asks the model's config.
        tokens: How many tokens to write, rounded down to whole blocks, but at least one block.
        context: T.
        seed: Of the random numbers.
        advance: Told of the tokens that are there.

    Returns:
        int64 `[N, T]`, on the CPU.

    Raises:
        TextError: The model cannot write.
    """
    if not kind_of(model).continues_text:
        raise TextError(
            f"A {model.config.model_type!r} model cannot write text of its own, and no text was given",
            remedy="Give text with --data",
        )
    count = max(1, tokens // context)
    template = None if tokenizer is None else Template.of(tokenizer)
    chats = count // 2 if template is not None and len(template.opening) < context else 0
    starts = [start for start in _starts(model, tokenizer, count, seed)[chats:].split(_BATCH) if len(start)]
    accelerators = [] if model.device.type == "cpu" else [model.device]
    tell = _Told(count * context, advance)
    with torch.random.fork_rng(devices=accelerators), torch.inference_mode():
        torch.manual_seed(seed)
        written = [_write(model, start_BS, context, None, tell) for start_BS in starts]
        if template is not None and chats:
            check_vocabulary(max(template.opening), model.config.get_text_config(decoder=True).vocab_size)
            opening_NS = torch.tensor([template.opening]).expand(chats, -1)
            written += [_write(model, start_BS, context, template, tell) for start_BS in opening_NS.split(_BATCH)]
    return torch.cat(written)


def _starts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, count: int, seed: int) -> torch.Tensor:
    config = model.config.get_text_config(decoder=True)
    bos = tokenizer.bos_token_id if tokenizer is not None else config.bos_token_id
    if bos is not None:
        check_vocabulary(bos, config.vocab_size)
        return torch.full((count, 1), bos)
    known = len(tokenizer) if tokenizer is not None else config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(known, config.vocab_size), (count, 1), generator=generator)


def _write(
    model: PreTrainedModel, starts_BS: torch.Tensor, context: int, template: "Template | None", tell: "_Told"
) -> torch.Tensor:
    tell.given(starts_BS)
    ids = starts_BS.to(model.device)
    generate: Any = model.generate
    written = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_new_tokens=context - ids.shape[1],
        logits_processor=LogitsProcessorList([_Turns(template, len(ids))] if template is not None else []),
        stopping_criteria=StoppingCriteriaList([tell]),
    )
    if not isinstance(written, torch.Tensor) or written.shape != (len(ids), context):
        raise TextError(
            f"A {model.config.model_type!r} model does not continue text token by token, and no text was given",
            remedy="Give text with --data",
        )
    return written.cpu()


@dataclass(frozen=True)
class Template:
    """What a chat template puts around and between turns, as tokens."""

    opening: tuple[int, ...]
    """Up to the first question, a system's turn among it where the template has one of its own."""
    joins: tuple[tuple[int, ...], tuple[int, ...]]
    """Between a question and its answer, and between an answer and the next question."""
    ends: frozenset[int]
    """Tokens by which a model ends its turn."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Template | None":
        """Return the template of a tokenizer; None where there is none, or it cannot be taken apart."""
        if not getattr(tokenizer, "chat_template", None):
            return None
        roles = ("user", "assistant", "user")
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except (jinja2.TemplateError, ValueError, TypeError, KeyError):  # what a template raises that wants other turns
            return None
        parts, rest = [], text
        for mark in _MARKS:
            before, found, rest = rest.partition(mark)
            if not found:
                return None
            parts.append(tuple(tokenizer(before, add_special_tokens=False)["input_ids"]))
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        first = {part[0] for part in parts[1:] if part}
        ends = frozenset(token for token in {*first, tokenizer.eos_token_id} if token in special)
        return cls(parts[0], (parts[1], parts[2]), ends) if all(parts) else None


class _Turns(LogitsProcessor):
    """Lets each block of a batch go on from turn to turn."""

    def __init__(self, template: Template, blocks: int) -> None:
        self._template = template
        self._blocks = [_Turn() for _ in range(blocks)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores `[B, V]` of the next tokens, where one is forced none but that of its own."""
        for block, (turn, last) in enumerate(zip(self._blocks, input_ids[:, -1].tolist(), strict=True)):
            if (token := turn.next(last, self._template)) is not None:
                scores[block] = -torch.inf
                scores[block, token] = 0
        return scores


@dataclass
class _Turn:
    """Where one block is."""

    answers: bool = False
    length: int = 0
    forced: list[int] = field(default_factory=list)

    def next(self, last: int, template: Template) -> int | None:
        """Return the token that has to follow the last one; None where the model is free."""
        if not self.forced:
            is_over = self.length > 0 and last in template.ends
            if is_over or (not self.answers and self.length >= _QUESTION):
                join = template.joins[self.answers]
                self.forced = list(join[1:] if is_over and last == join[0] else join)
                self.answers, self.length = not self.answers, 0
        if self.forced:
            return self.forced.pop(0)
        self.length += 1
        return None


class _Told(StoppingCriteria):
    """Stops nothing, and tells of every token."""

    def __init__(self, total: int, advance: Advance) -> None:
        self._total, self._advance = total, advance

    def given(self, ids_BS: torch.Tensor) -> None:
        """Tell of what blocks begin with."""
        self._advance(ids_BS.numel(), self._total)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Tell of one more token in each block."""
        self._advance(len(input_ids), self._total)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
