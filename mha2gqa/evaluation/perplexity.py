"""Loss of a checkpoint on the reference's held-out text, by transformers' own model class."""

from pathlib import Path

import torch

from mha2gqa.models import context_length, load_model, load_tokenizer
from mha2gqa.reference.corpus import held_out_files, read_documents
from mha2gqa.texts.blocks import pack

_BATCH = 8


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
    with torch.inference_mode():
        losses = [len(batch) * model(input_ids=batch, labels=batch).loss.item() for batch in blocks_NT.split(_BATCH)]
    return float(sum(losses) / len(blocks_NT))
