"""What the tests of `uptrain` train of encoder-decoders: a tiny converted model, and pairs that it can read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mha2gqa import ConvertOptions, UptrainOptions, convert
from tests.shipped.subjects import SUBJECTS
from tests.shipped.subjects import Subject as Family
from tests.verbs.uptrain.subjects import QUICK, options

PAD, EOS = 0, 2
TEXT_TO_TEXT = tuple(family for family in SUBJECTS if family.seq2seq and family.auto == "AutoModelForSeq2SeqLM")


def family(model_type: str) -> Family:
    """Return the family of a model type."""
    return next(one for one in SUBJECTS if one.model_type == model_type)


def pairs_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer that makes each printable character a token, and ends every text."""
    vocabulary = {"<pad>": PAD, "<unk>": 1, "</s>": EOS} | {chr(code): code - 29 for code in range(32, 123)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **{"pad_token": "<pad>", "eos_token": "</s>"} | more)


def save_pairs(path: Path, count: int = 80) -> Path:
    """Write pairs of a run of letters and its end backwards; most sources have several targets."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for _ in range(count):
        start, length, kept = (int(torch.randint(*span, (), generator=generator)) for span in ((0, 3), (4, 16), (2, 9)))
        source = "".join(chr(65 + (start + place) % 26) for place in range(length))
        rows.append({"source": source, "target": source[-kept:][::-1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_pair_subject(
    folder: Path, model_type: str = "t5", groups: int | Mapping[str, int] = 2, **overrides: Any
) -> tuple[Path, Path]:
    """Write a tiny original, its conversion, and pairs; return the conversion and the pairs."""
    model = family(model_type).native()
    for name, value in overrides.items():
        setattr(model.config, name, value)
    model.config.pad_token_id, model.config.decoder_start_token_id = PAD, EOS
    model.save_pretrained(folder / "original")
    pairs_tokenizer().save_pretrained(folder / "original")
    convert(ConvertOptions(model=str(folder / "original"), groups=groups, output=folder / "converted"))
    return folder / "converted", save_pairs(folder / "pairs.jsonl")


def pair_options(subject: tuple[Path, Path], **more: Any) -> UptrainOptions:
    """Options of a quick run of four steps of two pairs."""
    more["trainer"] = QUICK | more.pop("trainer", {})
    return options(subject, **{"context": 24, "target_context": 12} | more)
