"""Pairs are read from two columns, named or found, and what holds none is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.errors import TextError
from mha2gqa.texts.documents import read_pairs


def table(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"target": "B", "source": "A", "more": "C"}, (None, None)),
        ({"article": "A", "number": 3, "summary": "B"}, (None, None)),
        ({"article": "C", "summary": "B", "text": "A"}, ("text", "summary")),
        ({"one": "B", "number": 3, "two": "A"}, ("two", None)),
        ({"source": "A", "other": "B", "third": "C"}, (None, "other")),
        ({"translation": {"en": "A", "de": "B"}}, ("translation.en", "translation.de")),
        ({"a.b": "A", "a": {"c.d": "B"}}, ("a.b", "a.c.d")),
    ],
)
def test_columns_are_found(row: dict[str, Any], columns: tuple[str | None, str | None], tmp_path: Path) -> None:
    assert list(read_pairs([table(tmp_path / "rows.jsonl", row)], columns)) == [("A", "B")]


def test_tables_are_read_one_after_another_without_rows_that_lack_a_half(tmp_path: Path) -> None:
    one = table(tmp_path / "one.jsonl", {"source": "A", "target": "B"}, {"source": " ", "target": "C"})
    other = table(tmp_path / "other.jsonl", {"source": "D", "target": None}, {"source": "E", "target": "F"})
    assert list(read_pairs([one, other])) == [("A", "B"), ("E", "F")]


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        ({"text": "A"}, (None, None), ("1 columns of strings", "--source-column", "--target-column")),
        ({"one": "A", "two": "B", "three": "C"}, (None, None), ("3 columns of strings", "one, two, three")),
        ({"source": "A", "target": "B"}, ("document", None), ("no column 'document'", "source, target")),
        ({"source": "A", "target": "B"}, (None, "translation.en"), ("no column 'translation.en'", "--target-column")),
        ({"source": "A", "target": 3}, (None, None), ("'target'", "holds int", "--target-column")),
        ({"source": "A", "target": " "}, (None, None), ("holds no text",)),
    ],
)
def test_what_holds_no_pairs_is_refused(
    row: dict[str, Any], columns: tuple[str | None, str | None], says: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(TextError) as refused:
        list(read_pairs([table(tmp_path / "rows.jsonl", row)], columns))
    assert not [part for part in says if part not in str(refused.value)], str(refused.value)


def test_plain_text_and_files_that_are_not_there_are_refused_first(tmp_path: Path) -> None:
    good = table(tmp_path / "good.jsonl", {"source": "A", "target": "B"})
    (tmp_path / "text.txt").write_text("text")
    for name, says in (("text.txt", "is plain text"), ("nothing.jsonl", "There is no file")):
        with pytest.raises(TextError, match=says):
            next(read_pairs([good, str(tmp_path / name)]))
