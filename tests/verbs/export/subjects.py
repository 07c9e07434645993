"""What llama.cpp can read of tiny models: one with a byte-level tokenizer, which is trained on a few words."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mha2gqa import ConvertOptions, convert
from tests.families.tiny import save_tiny

VOCABULARY = 320


def save_byte_tokenizer(directory: Path, before: pre_tokenizers.PreTokenizer | None = None) -> None:
    """Write a tokenizer as GPT-2's is made, or with another step before its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = before or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([__doc__, Path(__file__).read_text()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(directory)  # noqa: S106


def save_readable(folder: Path, model_type: str = "llama", groups: int = 2, **overrides: Any) -> Path:
    """Write a tiny checkpoint and its conversion, and return the latter."""
    source = folder / model_type
    save_tiny(model_type, source, vocab_size=VOCABULARY, **overrides)
    save_byte_tokenizer(source)
    convert(ConvertOptions(model=str(source), groups=groups, output=folder / f"{model_type}-{groups}"))
    return folder / f"{model_type}-{groups}"
