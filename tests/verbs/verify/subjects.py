"""What the tests of `verify` verify: tiny checkpoints with a tokenizer of characters, and a text for it."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mha2gqa import ConvertOptions, convert
from mha2gqa.files.reader import read_checkpoint
from tests.families.tiny import save_tiny

BOS = 1


def save_tokenizer(directory: Path, *, first: int = 3) -> None:
    """Write a tokenizer that makes each printable character one token, from `first` on."""
    vocabulary = {"<unk>": 0, "<s>": BOS, "\n": 2} | {chr(code): first + code - 32 for code in range(32, 96)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(directory)  # noqa: S106


def save_source(directory: Path, model_type: str = "llama", *, shards: int = 1, **overrides: Any) -> Path:
    """Write a tiny checkpoint that can read text."""
    model = save_tiny(model_type, directory, **overrides)
    if shards > 1:
        (directory / "model.safetensors").unlink()
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        model.save_pretrained(directory, max_shard_size=size // shards)
    save_tokenizer(directory)
    return directory


def save_text(path: Path, characters: int = 600) -> Path:
    """Write a text that no two blocks of have in common."""
    generator = torch.Generator().manual_seed(11)
    codes = torch.randint(33, 96, (characters,), generator=generator)
    path.write_text("".join(map(chr, codes.tolist())))
    return path


def converted(source: Path, output: Path, groups: int, **options: Any) -> Path:
    """Convert `source`, and return where to."""
    convert(ConvertOptions(model=str(source), groups=groups, output=output, **options))
    return output


def flip_bit(directory: Path, name: str, byte: int = -1) -> None:
    """Flip the lowest bit of one byte of a tensor."""
    info = next(info for info in read_checkpoint(directory).tensors if info.name == name)
    offset = info.offset + byte % info.size
    with info.file.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([old ^ 1]))


def rearrange_rows(directory: Path, name: str, order: list[int]) -> None:
    """Put equal runs of the rows of a tensor into another order."""
    info = next(info for info in read_checkpoint(directory).tensors if info.name == name)
    with info.file.open("r+b") as file:
        file.seek(info.offset)
        content = file.read(info.size)
        size = info.size // len(order)
        file.seek(info.offset)
        file.write(b"".join(content[size * place : size * (place + 1)] for place in order))


def edit_json(path: Path, *keys: str, value: Any) -> None:
    """Set one key of a JSON file."""
    content = json.loads(path.read_text())
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = value
    path.write_text(json.dumps(content))
