"""Compares the tokenizer and the other small files of a converted checkpoint with its original's."""

import filecmp
from collections.abc import Iterator
from pathlib import Path

from mha2gqa.files.reader import Checkpoint
from mha2gqa.model.original import Original
from mha2gqa.verbs.verify.levels import Finding

_READ_BY_TOKENIZERS = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens", "chat_template", "spiece")
"""How the names of files begin whose presence alone changes a tokenizer."""


def companion_findings(original: Original, converted: Checkpoint) -> Iterator[Finding]:
    """Yield each file beside the weights that is missing, differs, or makes another tokenizer by being there."""
    beside = original.checkpoint.companions
    for companion in beside:
        before, after = original.directory / companion, converted.directory / companion
        if not after.is_file():
            yield _finding(companion, "is missing; the original has it")
        elif not filecmp.cmp(before, after, shallow=False):
            yield _finding(companion, "differs from the original's")
    added = original.origin.files
    for name, text in added.items():
        file = converted.directory / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            yield _finding(Path(name), "is not what this version writes for the class")
    for companion in converted.companions:
        is_known = companion in beside or str(companion) in added
        if not is_known and companion.name.startswith(_READ_BY_TOKENIZERS):
            yield _finding(companion, "is not beside the original, and would change its tokenizer")


def _finding(companion: Path, problem: str) -> Finding:
    return Finding(level="file", guilty=str(companion), problem=problem)
