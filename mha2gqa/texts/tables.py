"""Rows of tables: local files (`local.py`), saved data sets, and those of the Hub, streamed by the `datasets` library.

    rows.jsonl   rows.parquet   saved/   org/name   org/name@revision:config:split   rows.jsonl:3

A weight may stand behind a name; a path that itself ends so, and is there, is a path. A column inside another is named
with a dot: `translation.en`. Which columns are read is decided in `columns.py`.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from mha2gqa.errors import TextError
from mha2gqa.texts.columns import SAMPLE, SAMPLE_SIZE, value_of
from mha2gqa.texts.local import Row, is_format, is_saved, read_local

Purpose: TypeAlias = Literal["evaluation", "calibration"]

_TEXTS = (".txt", ".md", ".text")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:]*))?(?::(?P<split>[^:]+))?")
_WEIGHTED = re.compile(r"(?P<name>.+):(?P<weight>\d+(?:\.\d+)?)", re.DOTALL)
_PREFERRED = {
    "evaluation": ("test", "validation", "dev", "train"),
    "calibration": ("train", "validation", "dev", "test"),
}
"""Splits of a Hub data set, the one to take first."""


class Named(NamedTuple):
    """One of the things that are read, as the user named it."""

    name: str
    weight: float | None
    """Its share among others, in characters; None where none is named."""


def named(text: str) -> Named:
    """Return a name and its weight.

    Raises:
        TextError: The weight is zero.
    """
    match = _WEIGHTED.fullmatch(text)
    if match is None or _is_there(text):
        return Named(text, None)
    if not float(match["weight"]):
        raise TextError(f"{text} has no weight", expected="a number above zero", remedy="Leave it out")
    return Named(match["name"], float(match["weight"]))


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # too long a name, a folder that may not be entered, no home
        return False


def check_exists(data: Sequence[str]) -> None:
    """Refuse files that are not there.

    Raises:
        TextError: One is missing, empty, a directory or no ordinary file, or cannot be reached.
    """
    for name in data:
        try:
            _check_exists(name)
        except (OSError, RuntimeError) as error:  # a name that is too long, a folder that may not be entered, no home
            reason = error.strerror if isinstance(error, OSError) else error
            raise TextError(
                f"{name} cannot be opened: {reason}", remedy="Check the path and its permissions"
            ) from error


def _check_exists(name: str) -> None:
    if not name.strip():
        raise TextError("A name of text is empty", expected="a file, or a Hub data set", remedy="Leave it out")
    path = Path(name).expanduser()
    if path.is_file():
        if path.stat().st_size == 0:
            raise empty(name)
        return
    if path.is_dir():
        if is_saved(path):
            return
        raise TextError(
            f"{name} is a directory",
            expected="files of text, or what datasets' save_to_disk has written",
            remedy=f"Name its files: {name.rstrip('/')}/*",
        )
    if path.exists():
        raise TextError(
            f"{name} is no ordinary file", expected="a file that can be read twice", remedy="Write its text into one"
        )
    looks_like_a_file = is_format(path) or path.suffix.lower() in _TEXTS or not _HUB.fullmatch(name)
    if looks_like_a_file:
        raise TextError(
            f"There is no file {name!r}",
            expected="a text, jsonl, csv or parquet file, or a Hub data set (org/name, org/name@revision:config:split)",
            remedy="Check the path",
        )


def is_table(name: str) -> bool:
    """Return whether what the user named is a table rather than a file of plain text."""
    path = Path(name).expanduser()
    return not path.is_file() or is_format(path)


def read_rows(name: str, purpose: Purpose) -> tuple[list[Row], Iterator[Row]]:
    """Return the first rows of a table, by which its columns are judged, and all of them.

    Args:
        name: As the user named it.
        purpose: Which split of a Hub data set to take when none is named.

    Raises:
        TextError: It is unreadable.
    """
    rows = _read(name, purpose)
    sample: list[Row] = []
    size = 0
    for row in itertools.islice(rows, SAMPLE):
        sample.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if size > SAMPLE_SIZE:
            break
    return sample, itertools.chain(sample, rows)


def _read(name: str, purpose: Purpose) -> Iterator[Row]:
    path = Path(name).expanduser()
    if path.is_file():
        try:
            yield from read_local(path)
        except UnicodeDecodeError as error:
            raise undecodable(name, error) from error
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error
        return
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        yield from _chosen(name, _saved(path) if path.is_dir() else _open_remote(name), purpose)
    except UnicodeDecodeError as error:
        raise undecodable(name, error) from error
    except (DatasetsError, OSError, ValueError, HTTPError) as error:
        raise _unreadable(name, error) from error


def text_of(name: str, row: dict[str, Any], column: str, option: str = "--column") -> str:
    """Return the text in a column, empty where there is none.

    Args:
        name: Of the table.
        row: One of its rows.
        column: That `value_of` finds in some rows.
        option: Which chooses the column.

    Raises:
        TextError: It holds something else.
    """
    try:
        text = value_of(row, column)
    except KeyError:
        return ""
    if text is not None and not isinstance(text, str):
        raise TextError(
            f"Column {column!r} of {name} holds {type(text).__name__}",
            expected="strings",
            remedy=f"Choose another with {option}",
        )
    return _whole(text or "")


def _whole(text: str) -> str:
    """Return text without halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def empty(name: str) -> TextError:
    """Return the refusal of data without text."""
    return TextError(f"{name} holds no text", expected="at least one document", remedy="Name another with --data")


def undecodable(name: str, error: Exception) -> TextError:
    """Return the refusal of what is not UTF-8."""
    return TextError(
        f"{name} cannot be decoded ({error})",
        expected="text in UTF-8, or a table whose name ends in .jsonl, .csv or .parquet",
        remedy="Convert it: iconv -f <encoding> -t utf-8",
    )


def _open_remote(name: str) -> Any:
    """Return the splits of a Hub data set, or the one that is named."""
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    match = _HUB.fullmatch(name)
    if match is None:
        raise TextError(f"{name!r} is neither a file nor a Hub data set", expected="org/name@revision:config:split")
    try:
        splits = load_dataset(match["name"], match["config"] or None, revision=match["revision"], streaming=True)
    # Unknown, gated, offline, without a connection, of several configs: all end here, told apart by their text.
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise TextError(
            f"The data set {name} cannot be opened: {' '.join(str(error).split())[:300]}",
            expected="a Hub data set that this account can read (org/name, org/name@revision:config:split)",
            remedy="Check the name and the network; for a gated one ask for access, then run `hf auth login`",
        ) from error
    split = match["split"]
    if split is not None and split not in splits:
        raise TextError(f"{name} has no split {split!r}", expected=f"one of {', '.join(splits)}")
    return splits if split is None else {split: splits[split]}


def _saved(path: Path) -> Any:
    """Return the splits of a saved data set."""
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # of a JSON file with something else in it
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return saved if isinstance(saved, DatasetDict) else {path.name: saved}


def _chosen(name: str, splits: Mapping[str, Any], purpose: Purpose) -> Any:
    """Return the split to take where none is named."""
    if not splits:
        raise empty(name)
    return splits[next((one for one in _PREFERRED[purpose] if one in splits), next(iter(splits)))]


def _unreadable(name: str, error: Exception) -> TextError:
    cause = error.__cause__ or error
    reason = str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
    return TextError(
        f"{name} cannot be read: {reason}",
        expected="a well-formed file, one row a document",
        remedy="Repair it, or name another with --data",
    )
