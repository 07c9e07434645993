"""Equal blocks of tokens: packed from documents, or written by the model itself; and the loss of a model on them.

Legend: N blocks, T tokens of a block.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.model.divergence import target_losses
from mha2gqa.model.feed import inputs
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import context_length, load_model, load_tokenizer
from mha2gqa.reference.corpus import held_out_files, read_documents

_BATCH = 16
"""Blocks that are sampled at a time."""
_READ_AT_ONCE = 8
"""Blocks whose loss is taken at a time."""


def pack(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, context: int, tokens: int, least: int = 1
) -> torch.Tensor:
    """Tokenise documents, put one behind the other, and cut them into whole blocks; what is left over is dropped.

    The tokenizer's BOS token stands before each document, where it has one. A tokenizer that itself
    begins every text with BOS (Llama, Gemma) was trained to see it first, so there each block begins
    with it as well. Reading stops as soon as there are enough tokens.

    Args:
        documents: The texts.
        tokenizer: Of the model that will read the blocks.
        context: T.
        tokens: How many tokens to take at most, rounded down to whole blocks, but at least one block.
        least: How many blocks there must be.

    Returns:
        int64 `[N, T]`.

    Raises:
        TextError: There are fewer than `least` blocks.
    """
    bos = tokenizer.bos_token_id
    opens = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
    width = context - 1 if opens else context
    wanted = max(1, tokens // context, least)
    stream: list[int] = []
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        stream += ids if opens or bos is None else [bos, *ids]
        if len(stream) >= wanted * width:
            break
    blocks = min(wanted, len(stream) // width)
    if blocks < least:
        raise TextError(
            f"The text is {len(stream):,} tokens long",
            expected=f"at least {least * width:,}: {least} block{'s' * (least > 1)} of {context}",
            remedy="Give more text with --data, or a smaller --context",
        )
    packed_NT = torch.tensor(stream[: blocks * width]).view(blocks, width)
    return torch.cat([packed_NT.new_full((blocks, 1), bos), packed_NT], dim=1) if opens else packed_NT


def sample_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, tokens: int, context: int, seed: int
) -> torch.Tensor:
    """Have a model write blocks of text: sampled at temperature 1, from BOS, or from random tokens without one.

    The same seed gives the same blocks on the same device and versions.

    Args:
        model: A causal language model, as `models.load_model` gives it.
        tokenizer: Knows BOS; None asks the model's config.
        tokens: How many tokens to write, rounded down to whole blocks, but at least one block.
        context: T.
        seed: Of the random numbers.

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
    starts_N1 = _starts(model, tokenizer, count, seed)
    accelerators = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices=accelerators), torch.inference_mode():
        torch.manual_seed(seed)
        written = [_write(model, starts_B1, context) for starts_B1 in starts_N1.split(_BATCH)]
    return torch.cat(written)


def _starts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, count: int, seed: int) -> torch.Tensor:
    config = model.config.get_text_config(decoder=True)
    bos = tokenizer.bos_token_id if tokenizer is not None else config.bos_token_id
    if bos is not None:
        return torch.full((count, 1), bos)
    known = len(tokenizer) if tokenizer is not None else config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(known, config.vocab_size), (count, 1), generator=generator)


def _write(model: PreTrainedModel, starts_B1: torch.Tensor, context: int) -> torch.Tensor:
    ids = starts_B1.to(model.device)
    generate: Any = model.generate
    written = generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=context - 1
    )
    if not isinstance(written, torch.Tensor) or written.shape != (len(ids), context):
        raise TextError(
            f"A {model.config.model_type!r} model does not continue text token by token, and no text was given",
            remedy="Give text with --data",
        )
    return written.cpu()


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
def mean_loss(model: PreTrainedModel, batches_BT: Sequence[torch.Tensor]) -> float:
    """Return the mean loss of a language model in nats per predicted token.

    An encoder-decoder reads the tokens in both halves, as in `verify` and `sweep`.
    """
    total, predicted = 0.0, 0
    for ids_BT in batches_BT:
        losses, count = target_losses(model(**inputs(model, ids_BT)).logits[:, :-1], ids_BT[:, 1:])
        total += sum(losses.tolist())
        predicted += int(count)
    return total / predicted
