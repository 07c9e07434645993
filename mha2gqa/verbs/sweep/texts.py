"""The text that conversions learn from and the text that they are measured on: nothing is in both.

Where one text has to serve for both, a fifth of it is evaluated on. The two parts become files beside the results,
so that `convert` and `verify` can be given the very same. No tokens here (`texts/blocks.py`).
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mha2gqa.errors import TextError
from mha2gqa.files.source import Source
from mha2gqa.files.working import make_ours, replace_file
from mha2gqa.texts.chats import Document, Record
from mha2gqa.texts.documents import read_documents
from mha2gqa.texts.tables import check_exists, named
from mha2gqa.texts.words import SELF
from mha2gqa.verbs.sweep.options import SweepOptions

_SHARE = 5
"""One character in so many is evaluated on."""
_CHARACTERS = 8
"""Characters that are read for each token that is wanted; more than any usual tokenizer takes for one."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Two texts, as values of `--data`; empty is what the model's own is."""

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]
    column: str | None
    """Of tables in both."""
    seed: int
    """Of evaluation text that the model writes."""


def check_texts(options: SweepOptions) -> None:
    """Refuse text that is not there, would be learned from and evaluated on, or shows no loss.

    Raises:
        TextError: A file or data set is named for both, a file is not there, or blocks end within a window.
    """
    window = max(options.window, default=0)
    if options.context is not None and options.context <= window:
        raise TextError(
            f"--context {options.context} ends within the window of {window} tokens, where nothing can be lost",
            expected=f"more than {window} tokens",
        )
    check_exists([named(name).name for name in (*options.data, *options.eval_data) if name != SELF])
    learned, evaluated = (
        {os.path.realpath(named(name).name): name for name in data if name != SELF}
        for data in (options.data, options.eval_data)
    )
    if both := sorted(learned[place] for place in learned.keys() & evaluated.keys()):
        raise TextError(
            f"{both[0]} is named by --data and by --eval-data",
            expected="text to evaluate on that no conversion has learned from",
            remedy="Leave out --eval-data, and --data is divided",
        )


def find_texts(options: SweepOptions, source: Source, directory: Path) -> Texts:
    """Decide what is learned from and what is evaluated on.

    Args:
        options: What was asked for.
        source: The original; the reference checkpoint has text of its own to evaluate on.
        directory: Where a text that has to be divided goes.

    Raises:
        TextError: The text is missing, unreadable or too short.
    """
    data, evaluation, column = options.data, options.eval_data, options.column
    seed = options.seed + (SELF in data)  # of the same seed the model would write the calibration text again
    if not evaluation and data and SELF not in data and not source.is_reference:
        data, evaluation = divide(data, column, options.tokens + options.eval_tokens, directory)
        column = None
    elif not evaluation and SELF in data:
        evaluation = data
    return Texts(calibration=data, evaluation=evaluation, column=column, seed=seed)


def divide(
    data: Sequence[str], column: str | None, tokens: int, directory: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide a text, and write `calibration.jsonl` and `evaluation.jsonl`.

    Args:
        data: Files or Hub data sets.
        column: Column of tables that holds the text.
        tokens: How many tokens are wanted of both together, at most.
        directory: Where the files go.

    Returns:
        The two, as values of `--data`.

    Raises:
        TextError: The text is missing, unreadable or too short.
        OutputError: The directory is somebody else's.
    """
    documents = list(_enough(read_documents(data, column, "calibration"), tokens * _CHARACTERS))
    evaluation, calibration = split(documents)
    make_ours(directory)
    files = directory / "calibration.jsonl", directory / "evaluation.jsonl"
    for path, part in zip(files, (calibration, evaluation), strict=True):
        _write(path, part)
    return (str(files[0]),), (str(files[1]),)


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Return the first fifth of some documents, and the others.

    A text that would make the first part twice as long as that is cut at the end of a line.

    Raises:
        TextError: There is too little to divide.
    """
    wanted = sum(map(len, documents)) // _SHARE
    first: list[Document] = []
    taken = 0
    for number, document in enumerate(documents):
        if isinstance(document, str) and taken + len(document) > 2 * wanted:
            least = max(1, wanted - taken)
            at = document.find("\n", least, 2 * wanted - taken) + 1 or least
            rest = [document[at:]] if document[at:].strip() else []
            return [*first, document[:at]], [*rest, *documents[number + 1 :]]
        first.append(document)
        taken += len(document)
        if taken >= wanted:
            return first, list(documents[number + 1 :])
    raise TextError("There is no text to divide", expected="at least one document", remedy="Name another with --data")


def _enough(documents: Iterable[Document], characters: int) -> Iterator[Document]:
    """Yield each document once, until there are enough characters."""
    seen: set[Document] = set()
    for document in documents:
        if document in seen:
            continue
        seen.add(document)
        yield document
        characters -= len(document)
        if characters <= 0:
            return


def _write(path: Path, documents: Sequence[Document]) -> None:
    """Write documents; a file that has them already keeps its time, by which unfinished work is known again."""
    lines = (
        one.line if isinstance(one, Record) else json.dumps({"text": one}, ensure_ascii=False) for one in documents
    )
    content = "".join(f"{line}\n" for line in lines)
    if path.is_symlink() or not (path.is_file() and path.read_bytes() == content.encode()):
        replace_file(path, content.encode())
