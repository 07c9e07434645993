"""Loss of a checkpoint on the reference's held-out text, by transformers' own model class."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mha2gqa.model.divergence import target_losses
from mha2gqa.model.feed import inputs
from mha2gqa.model.load import context_length, load_model, load_tokenizer
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
    return mean_loss(model, blocks_NT.split(_BATCH))


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
