"""What the tests of `uptrain` train: a tiny converted model, and documents that it can read."""

import json
from pathlib import Path
from typing import Any

import torch

from mha2gqa import ConvertOptions, UptrainOptions, convert, uptrain
from mha2gqa.verbs.uptrain.outcome import UptrainReport
from tests.verbs.verify.subjects import converted, save_source, save_text

QUICK: dict[str, Any] = {
    "use_cpu": True,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 1e-2,
    "eval_steps": 2,
    "save_steps": 2,
}
"""Of the Trainer: steps of 2 blocks, measured and saved at every second."""


def save_documents(path: Path, documents: int = 120) -> Path:
    """Write documents of random printable characters, 20 to 60 each, with a pattern that can be learned."""
    generator = torch.Generator().manual_seed(5)
    lines = []
    for _ in range(documents):
        start, step, length = (int(torch.randint(low, high, (), generator=generator)) for low, high in _RANGES)
        text = "".join(chr(33 + (start + step * place) % 60) for place in range(length))
        lines.append(json.dumps({"text": text}))
    path.write_text("\n".join(lines) + "\n")
    return path


_RANGES = ((0, 60), (1, 4), (20, 60))


def save_subject(folder: Path, groups: int = 2, **overrides: Any) -> tuple[Path, Path]:
    """Write a tiny original, its conversion, and documents; return the conversion and the documents."""
    source = save_source(folder / "original", **overrides)
    return converted(source, folder / "converted", groups), save_documents(folder / "documents.jsonl")


def save_latent_subject(folder: Path, model_type: str = "llama", **more: Any) -> tuple[Path, Path]:
    """Write a tiny original, what a latent makes of it, and documents; return the conversion and the documents."""
    source, text = save_source(folder / "original", model_type), save_text(folder / "text.txt", 4000)
    asked = {"latent": 24, "rope_width": 8, "data": (str(text),), "context": 32, "tokens": 2048} | more
    convert(ConvertOptions(model=str(source), output=folder / "converted", **asked))
    return folder / "converted", save_documents(folder / "documents.jsonl")


def options(subject: tuple[Path, Path], **more: Any) -> UptrainOptions:
    """Options of a quick run of four steps."""
    directory, documents = subject
    defaults: dict[str, Any] = {
        "converted": directory,
        "output": directory.parent / "uptrained",
        "data": (str(documents),),
        "context": 32,
        "steps": None if {"tokens", "alpha"} & set(more) else 4,
        "trainer": QUICK | more.pop("trainer", {}),
        "held_out_tokens": 200,
        "keep": "last",  # models of random weights may learn to be as bad as their originals
    }
    return UptrainOptions(**defaults | more)


def trained(subject: tuple[Path, Path], **more: Any) -> UptrainReport:
    """Train, and return the report."""
    report = uptrain(options(subject, **more))
    assert report is not None
    return report
