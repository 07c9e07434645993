"""Rows of local tables: jsonl, json, csv, tsv, parquet and arrow, a bounded part of a file in memory at a time.

    rows.jsonl      an object a line
    rows.json       objects, one behind the other or in one list; not below a key of another object, which is a guess
    rows.csv        with a header; separated by commas, or by tabs in rows.tsv
    rows.jsonl.zst  compressed; also .gz, and also plain text
    rows.arrow      of the `datasets` library, and folders that its `save_to_disk` has written

JSON and csv are read here and not by `datasets`: its parsers follow brackets as deep as a file has them, which ends the
process, and hold what the longest of many rows needs.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from mha2gqa.errors import TextError

Row: TypeAlias = dict[str, Any]

LONGEST = 64 << 20
"""Bytes of a row: more than any book has."""
_CHUNK = 1 << 20
_BATCH = 64
"""Rows of a parquet file that are in memory at a time."""
_OTHER_SEPARATORS = ";\t|"
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Endings of names -> pyarrow's names."""


def is_format(path: Path) -> bool:
    """Return whether a name is that of a table."""
    return _ending(path) in FORMATS


def is_saved(path: Path) -> bool:
    """Return whether a folder is a saved data set, of one split or of several."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def read_local(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Raises:
        ValueError: It is malformed; TextError where there is more to say than what.
        OSError: It cannot be read.
    """
    yield from FORMATS[_ending(path)](path)


def opened(path: Path) -> IO[bytes]:
    """Open a file, which may be compressed.

    Raises:
        OSError: It cannot be read.
    """
    if not (codec := _COMPRESSED.get(path.suffix.lower())):
        return path.open("rb")
    import pyarrow

    stream: Any = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), codec)
    return io.BufferedReader(stream, _CHUNK)


def _ending(path: Path) -> str:
    """Return the ending of a name that says what is in it."""
    is_compressed = path.suffix.lower() in _COMPRESSED
    return Path(path.stem).suffix.lower() if is_compressed else path.suffix.lower()


def lines(file: IO[bytes], longest: int = LONGEST) -> Iterator[str]:
    """Yield the lines of a file.

    Raises:
        ValueError: One is too long, or not UTF-8.
    """
    for number in itertools.count(1):
        line = file.readline(longest + 1)
        if not line:
            return
        if len(line) > longest:
            raise ValueError(f"line {number:,} is longer than {longest:,} bytes")
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def _json_lines(path: Path) -> Iterator[Row]:
    with opened(path) as file:
        for number, line in enumerate(lines(file), start=1):
            if line.strip():
                yield _row(_parsed(json.loads, line, number), number)


def _parsed(parse: Callable[..., Any], text: str, number: int, *at: int) -> Any:
    try:
        return parse(text, *at)
    except RecursionError:
        raise ValueError(f"JSON parse error in row {number:,}: it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"JSON parse error in row {number:,}: {error}") from None


def _row(value: Any, number: int) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"row {number:,} is a JSON {type(value).__name__}, and no object")
    return value


def _json(path: Path) -> Iterator[Row]:
    values = _Values(path).read()
    first = next(values, None)
    if first is None:
        return
    value, in_list = first
    second = next(values, None)
    if second is None and not in_list:
        _refuse_wrapped(path, value)
    rest = itertools.chain([first] if second is None else [first, second], values)
    for number, (value, _) in enumerate(rest, start=1):
        yield _row(value, number)


def _refuse_wrapped(path: Path, value: Any) -> None:
    """Refuse one object that holds rows, or columns: which of its keys is meant is not for us to say."""
    holders = (
        [key for key, inner in value.items() if isinstance(inner, (list, dict))] if isinstance(value, dict) else []
    )
    if holders:
        raise TextError(
            f"{path} is one JSON object, and not rows; there are {', '.join(map(repr, value))}",
            expected="a list of objects, or an object a line, each with its text in a column",
            remedy=f"Write the rows alone: jq -c '.{holders[0]}[]' {path} > rows.jsonl",
        )


class _Values:
    """The JSON values of a file, one behind the other or in one list, without the whole of it in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def read(self) -> Iterator[tuple[Any, bool]]:
        """Yield each value, and whether it is in a list."""
        with io.TextIOWrapper(opened(self._path), encoding="utf-8-sig") as file:
            in_list = self._next(file) == "["
            self._at += in_list
            for number in itertools.count(1):
                following = self._next(file)
                if in_list and following == "," and number > 1:
                    self._at += 1
                    following = self._next(file)
                if in_list and following == "]":
                    self._at += 1
                    if rest := self._next(file):
                        raise ValueError(f"JSON parse error: {rest!r} behind the list")
                    return
                if not following and not in_list:
                    return
                yield self._value(file, number), in_list

    def _next(self, file: IO[str]) -> str:
        """Go to the next character that is no space; empty at the end of the file."""
        while True:
            rest = self._text[self._at : self._at + 1]
            if rest and not rest.isspace():
                return rest
            self._at += len(rest)
            if not rest and not self._fill(file):
                return ""

    def _value(self, file: IO[str], number: int) -> Any:
        while True:
            try:
                value, end = _parsed(self._decoder.raw_decode, self._text, number, self._at)
            except ValueError:
                if len(self._text) - self._at > LONGEST or not self._fill(file):
                    raise
                continue
            if end < len(self._text) or not self._fill(file):  # a number at the end may go on
                self._at = end
                return value

    def _fill(self, file: IO[str]) -> bool:
        """Read as much again as there is still; return whether there was anything."""
        text = file.read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(text)


def _csv(path: Path, separator: str = ",") -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    with opened(path) as file:
        rows = csv.reader(lines(file), delimiter=separator, strict=True)
        try:
            header = next(rows, [])
            if len(header) == 1 and (other := next((one for one in _OTHER_SEPARATORS if one in header[0]), None)):
                raise ValueError(f"its only column is {header[0]!r}, which seems to be separated by {other!r}")
            if len(set(header)) < len(header):
                raise ValueError(f"two of its columns have one name: {', '.join(header)}")
            for row in filter(None, rows):
                if len(row) > len(header):
                    raise ValueError(f"line {rows.line_num:,} has {len(row)} fields, and the header {len(header)}")
                yield dict(itertools.zip_longest(header, row))
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num:,}: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, buffer_size=_CHUNK, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _arrow(path: Path) -> Iterator[Row]:
    import datasets
    import pyarrow

    try:
        yield from datasets.Dataset.from_file(str(path))
    except (pyarrow.ArrowException, KeyError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


FORMATS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": lambda path: _csv(path, "\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Endings of names, and what reads such files."""
