"""Training text that the original writes itself: sampled in batches, appended to a jsonl file, reused.

Each line is one sample: `ids`, its tokens, and `text`, which `--data` can read elsewhere. A batch's random numbers
depend on its own number alone, so a run that was killed goes on where the file ends, with the same text.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.progress import Advance
from mha2gqa.texts.written import sample_text

_BATCH = 16
"""Samples that are written at a time."""
_BEGINNING = b'{"ids": ['
"""Of each line, by which one that was cut off is known."""


def write_samples(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    context: int,
    seed: int,
    advance: Advance,
) -> None:
    """Have the original write until the file holds enough.

    Args:
        path: The file; what is in it stays.
        model: The original.
        tokenizer: Its tokenizer.
        tokens: How many tokens there must be, at least.
        context: Tokens of a sample.
        seed: Of the sampling.
        advance: Told of every batch.

    Raises:
        TextError: The model cannot write, or the file holds something else.
    """
    wanted = -(-tokens // (context * _BATCH))
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _whole_batches(path, context)
    advance(done, wanted)
    for number in range(done, wanted):
        batch_seed = seed + 1_000_003 * number
        ids_BT = sample_text(model, tokenizer, tokens=_BATCH * context, context=context, seed=batch_seed)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_line(ids, tokenizer) for ids in ids_BT)
        advance(1, wanted)


def read_samples(path: Path) -> Iterator[list[int]]:
    """Yield the tokens of each sample."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["ids"]


def _line(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return json.dumps({"ids": ids.tolist(), "text": text}, ensure_ascii=False) + "\n"


def _whole_batches(path: Path, context: int) -> int:
    """Return how many batches the file holds; a batch that was cut off is taken away."""
    if not path.exists():
        return 0
    if not path.is_file():
        raise TextError(f"{path} is no ordinary file", expected="a file for samples", remedy="Choose it with --samples")
    lines = path.read_bytes().splitlines(keepends=True)
    ended = [line for line in lines if line.endswith(b"\n")]
    try:
        lengths = {len(json.loads(line)["ids"]) for line in ended}
        if any(not line.startswith(_BEGINNING[: len(line)]) for line in lines[len(ended) :]):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TextError(
            f"{path} holds no samples ({type(error).__name__})",
            expected="a file that `--data self` has written",
            remedy="Name another with --samples",
        ) from error
    if lengths - {context}:
        raise TextError(
            f"{path} holds samples of {max(lengths - {context})} tokens", expected=f"samples of {context}, by --context"
        )
    whole = ended[: len(ended) - len(ended) % _BATCH]
    if len(whole) < len(lines):
        path.write_bytes(b"".join(whole))
    return len(whole) // _BATCH
