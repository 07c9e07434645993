"""Loss of a checkpoint on the reference's held-out text, by transformers' own model class."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mha2gqa.reference.corpus import held_out_files, read_documents

_BATCH = 8


def held_out_loss(directory: Path, tokens: int) -> float:
    """Return the mean loss in nats per token on the first `tokens` tokens of the held-out modules.

    The text is cut into blocks of the model's context length; the first token of a block is not
    predicted. Weights are used in fp32, whatever they are stored in.

    Args:
        directory: The checkpoint.
        tokens: How many tokens to evaluate on, rounded down to whole blocks.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    context = model.config.max_position_embeddings
    stream = [
        token
        for text in read_documents(held_out_files())
        for token in (tokenizer.bos_token_id, *tokenizer(text, verbose=False)["input_ids"])
    ][: max(tokens, context)]
    blocks_BT = torch.tensor(stream[: len(stream) // context * context]).view(-1, context)
    with torch.inference_mode():
        losses = [len(batch) * model(input_ids=batch, labels=batch).loss.item() for batch in blocks_BT.split(_BATCH)]
    return float(sum(losses) / len(blocks_BT))
