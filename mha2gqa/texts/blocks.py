"""Equal blocks of tokens, packed from documents; and the loss of a model on such blocks.

Legend: N blocks, T tokens of a block.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.model.divergence import target_losses
from mha2gqa.model.feed import inputs
from mha2gqa.model.load import context_length, load_model, load_tokenizer
from mha2gqa.reference.corpus import held_out_files, read_documents
from mha2gqa.texts.chats import Document, Encoded, Record, encode

_READ_AT_ONCE = 8
"""Blocks whose loss is taken at a time."""
_AT_ONCE = 4 << 20
"""Characters that are tokenised at a time; each takes up to two hundred bytes on the way."""


def pack(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, context: int, tokens: int, least: int = 1
) -> torch.Tensor:
    """Return the tokens of `pack_marked` alone."""
    return pack_marked(documents, tokenizer, context=context, tokens=tokens, least=least)[0]


def pack_marked(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, context: int, tokens: int, least: int = 1
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokenise documents, put one behind the other, and cut them into whole blocks; what is left over is dropped.

    The tokenizer's BOS token stands before each text, where it has one; what a chat template has rendered has its own.
    A tokenizer that itself begins every text with BOS (Llama, Gemma) was trained to see it first, so there each block
    begins with it as well. Reading stops as soon as there are enough tokens.

    Args:
        documents: Texts, and records of other forms.
        tokenizer: Of the model that will read the blocks.
        context: T.
        tokens: How many tokens to take at most, rounded down to whole blocks, but at least one block.
        least: How many blocks there must be.

    Returns:
        int64 `[N, T]`, and bool `[N, T]`: which of them are answers; None where none is.

    Raises:
        TextError: There are fewer than `least` blocks, or a record cannot be tokenised.
    """
    opening = opening_token(tokenizer)
    wanted = max(1, tokens // context, least)
    ids: list[int] = []
    answers: list[bool] = []
    for part in _parts(documents, tokenizer, opening):
        ids += part.ids
        answers += part.answers or [False] * len(part.ids)
        if len(ids) >= wanted * context:
            break
    blocks = list(itertools.islice(_blocks(ids, answers, context, opening), wanted))
    if len(blocks) < least:
        width = context - (opening is not None)
        raise TextError(
            f"The text is {len(ids):,} tokens long",
            expected=f"at least {least * width:,}: {least} block{'s' * (least > 1)} of {context}",
            remedy="Give more text with --data, or a smaller --context",
        )
    packed_NT, marks_NT = (torch.tensor(part) for part in zip(*blocks, strict=True))
    return packed_NT, marks_NT if marks_NT.any() else None


def random_blocks(
    tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, context: int, tokens: int, seed: int
) -> torch.Tensor:
    """Draw tokens that are no special ones, each as likely as any other; blocks begin as those of texts do.

    Args:
        tokenizer: Of the model that will read the blocks.
        vocabulary: Tokens that the model knows.
        context: T.
        tokens: How many to draw.
        seed: Of the random numbers.

    Returns:
        int64 `[N, T]`, `tokens` rounded down to whole blocks, but at least one block.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    usual = torch.tensor([token for token in range(min(len(tokenizer), vocabulary)) if token not in special])
    generator = torch.Generator().manual_seed(seed)
    blocks_NT = usual[torch.randint(len(usual), (max(1, tokens // context), context), generator=generator)]
    if (opening := opening_token(tokenizer)) is not None:
        blocks_NT[:, 0] = opening
    return blocks_NT


def opening_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the BOS token of a tokenizer that begins every text with it; else None."""
    bos = tokenizer.bos_token_id
    opens = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
    return bos if opens else None


def _parts(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, opening: int | None) -> Iterator[Encoded]:
    """Yield the tokens of each document, those of a long text part by part, with BOS between texts."""
    between = [] if opening is not None or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for document in documents:
        if isinstance(document, Record):
            encoded = encode(document, tokenizer)
            if not encoded.is_whole:
                yield Encoded(between)
            yield encoded
            continue
        yield Encoded(between)
        for start in range(0, len(document), _AT_ONCE):
            part = document[start : start + _AT_ONCE]
            yield Encoded(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])


def _blocks(
    ids: list[int], answers: list[bool], context: int, opening: int | None
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield whole blocks, each begun with the token that opens every text, unless it does so by itself."""
    at = 0
    while at < len(ids):
        head = [] if opening is None or ids[at] == opening else [opening]
        end = at + context - len(head)
        if end > len(ids):
            return
        yield [*head, *ids[at:end]], [*(False for _ in head), *answers[at:end]]
        at = end


def check_vocabulary(token: int, vocabulary: int) -> None:
    """Refuse a token that the model does not know.

    Args:
        token: The largest that a tokenizer has given.
        vocabulary: How many the model knows.

    Raises:
        TextError: It is none of them.
    """
    if token >= vocabulary:
        raise TextError(
            f"The tokenizer gives token {token}, and the model knows {vocabulary}",
            expected="the tokenizer of the model",
            remedy="Check the tokenizer's files beside the weights",
        )


def held_out_loss(directory: Path, tokens: int) -> float:
    """Return the mean loss in nats per token on the first `tokens` tokens of the held-out modules.

    The text is cut into blocks of the model's context length; the first token of a block is not
    predicted. Weights are used in fp32, whatever they are stored in.

    Args:
        directory: The checkpoint.
        tokens: How many tokens to evaluate on, rounded down to whole blocks.
    """
    model = load_model(directory, dtype="float32", device="cpu")
    context = context_length(model.config, None)
    blocks_NT = pack(read_documents(held_out_files()), load_tokenizer(directory), context=context, tokens=tokens)
    return mean_loss(model, blocks_NT.split(_READ_AT_ONCE))


@torch.inference_mode()
def mean_loss(
    model: PreTrainedModel,
    batches_BT: Sequence[torch.Tensor],
    during: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> float:
    """Return the mean loss of a language model in nats per predicted token.

    An encoder-decoder reads the tokens in both halves, as in `verify` and `sweep`.

    Args:
        model: The model.
        batches_BT: Token ids, a batch each.
        during: Gives what is entered while a batch, by its number, is read.
    """
    total, predicted = 0.0, 0
    for number, ids_BT in enumerate(batches_BT):
        with during(number):
            logits_BTV = model(**inputs(model, ids_BT)).logits
        losses, count = target_losses(logits_BTV[:, :-1], ids_BT[:, 1:])
        total += sum(losses.tolist())
        predicted += int(count)
    return total / predicted
