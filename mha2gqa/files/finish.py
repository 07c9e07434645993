"""The finished checkpoint: weights, companions, record, card, and config.json last; read back, and then in its place.

The one place where the order of these steps is decided; `convert`, `expand` and `uptrain` share it. What stands in the
record and the card is theirs.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mha2gqa.errors import OutputError
from mha2gqa.files.pieces import OutputTensor
from mha2gqa.files.pool import Pool
from mha2gqa.files.reader import RECORD, Checkpoint, read_checkpoint
from mha2gqa.files.staging import staged
from mha2gqa.files.writer import OutputFile, write_weights
from mha2gqa.progress import Progress

CARD = "README.md"
SLACK = 64 << 20
"""Bytes beside the weights that must be free: headers, tokenizer, record, the file system's own."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a finished checkpoint holds."""

    files: Sequence[OutputFile]
    """Its weights."""
    pool: Pool
    """Makes one head of the heads of a group, where the weights ask for that."""
    source: Checkpoint
    """Whose companions and metadata it takes over."""
    config: Mapping[str, Any] | None
    """Its config.json; None is the source's, byte for byte."""
    record: Callable[[Mapping[str, str]], Mapping[str, Any]]
    """Gives the record of checksums: tensor name -> XXH3-128 of its bytes, in hexadecimal."""
    card: str
    """The text of its README.md."""
    more: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, name -> bytes."""

    @property
    def tensors(self) -> list[OutputTensor]:
        """Of all files."""
        return [tensor for file in self.files for tensor in file.tensors]


def finish(output: Path, contents: Contents, *, force: bool, progress: Progress) -> None:
    """Write a checkpoint, which appears at once and whole.

    Raises:
        OutputError: It cannot be written there, or what was written does not read back.
        CheckpointError: A source file ends early, or K/V hold NaN or infinity.
    """
    source = contents.source
    with staged(output, force=force) as directory:
        checksums = write_weights(
            directory, contents.files, pool=contents.pool, metadata=source.metadata, advance=progress.part("writing")
        )
        for companion in source.companions:
            (directory / companion).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.directory / companion, directory / companion)
        for name, content in contents.more.items():
            (directory / name).write_bytes(content)
        write_record(directory, contents.record(checksums))
        (directory / CARD).write_text(contents.card, encoding="utf-8")
        write_config(directory / "config.json", contents)
        check_written(directory, contents.tensors)


def write_record(directory: Path, content: Mapping[str, Any]) -> None:
    """Write the record of what was done."""
    (directory / RECORD).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_config(path: Path, contents: Contents) -> None:
    """Write config.json, without which nothing is a checkpoint."""
    if contents.config is None:
        shutil.copyfile(contents.source.directory / path.name, path)
    else:
        path.write_text(json.dumps(contents.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_written(directory: Path, tensors: Sequence[OutputTensor]) -> None:
    """Read the headers back from disk and hold them against what was planned.

    Raises:
        OutputError: They differ.
    """
    written = {info.name: (info.dtype, info.shape) for info in read_checkpoint(directory).tensors}
    if written != {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}:
        raise OutputError("What was written does not read back as planned", remedy="Check the disk, and try again")
