"""What the two models write after the same prompts, greedily, side by side."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.model.feed import attempt
from mha2gqa.model.kind import kind_of
from mha2gqa.verbs.verify.differences import Continuation

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 3, 32, 48


@torch.inference_mode()
def continuations(
    original: PreTrainedModel, converted: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks_NT: torch.Tensor
) -> tuple[Continuation, ...]:
    """Continue the beginnings of a few blocks, evenly spaced; nothing where the original's class does not generate."""
    count, length = min(_PROMPTS, len(blocks_NT)), min(_PROMPT_TOKENS, blocks_NT.shape[1] // 2)
    chosen = [number * len(blocks_NT) // count for number in range(count)]
    prompts_NT = blocks_NT[chosen, : max(1, length)]
    if not kind_of(original).generates:
        return ()
    count = _room(converted, prompts_NT.shape[1])
    first_NT = attempt(lambda: _write(original, prompts_NT, count))
    if isinstance(first_NT, str):
        return ()
    second_NT = _write(converted, prompts_NT, count)
    return tuple(
        Continuation(
            prompt=_text(tokenizer, prompt_T),
            original=_text(tokenizer, first_T),
            converted=_text(tokenizer, second_T),
            agreed=int((first_T == second_T).long().cumprod(0).sum()),
            tokens=len(first_T),
        )
        for prompt_T, first_T, second_T in zip(prompts_NT, first_NT, second_NT, strict=True)
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids_T: torch.Tensor) -> str:
    return str(tokenizer.decode(ids_T, skip_special_tokens=True))


def _room(converted: PreTrainedModel, prompt: int) -> int:
    """Return how many tokens to write: a table of positions may end where the original's formula does not."""
    most = getattr(converted.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(_NEW_TOKENS, max(1, most - prompt)) if isinstance(most, int) else _NEW_TOKENS


def _write(model: PreTrainedModel, prompts_NT: torch.Tensor, count: int) -> torch.Tensor:
    generate: Any = model.generate
    written_NT: torch.Tensor = generate(input_ids=prompts_NT.to(model.device), max_new_tokens=count)
    return written_NT[:, -count:].cpu()
