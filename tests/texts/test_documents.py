"""Documents of every kind of file come back in order; bad ones are refused with what is wrong and what is there."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas
import pytest

from mha2gqa.errors import TextError
from mha2gqa.texts.documents import read_documents

ROWS = [{"id": number, "text": f"document {number}", "title": "t"} for number in range(3)]
DOCUMENTS = [row["text"] for row in ROWS]

Read = Callable[..., list[str]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.chdir(tmp_path)

    def run(*data: str, column: str | None = None) -> list[str]:
        return list(read_documents(data, column))

    return run


def write_table(path: Path, rows: Sequence[object] = ROWS) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_each_row_of_a_table_is_a_document(read: Read, tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name)
    assert read(name) == DOCUMENTS
    assert read(name, column="title") == ["t"] * 3


def test_files_come_in_the_order_in_which_they_were_named_and_empty_documents_are_left_out(
    read: Read, tmp_path: Path
) -> None:
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.log").write_text("three")
    write_table(tmp_path / "c.parquet", [{"text": "four"}, {"text": None}, {"text": "  "}])
    assert read("b.txt", "c.parquet", "a.log") == ["one\n\ntwo\n", "four", "three"]


def test_the_only_column_of_strings_needs_no_name(read: Read, tmp_path: Path) -> None:
    write_table(tmp_path / "rows.jsonl", [{"id": 1, "body": "x"}])
    assert read("rows.jsonl") == ["x"]


def test_a_long_plain_file_is_cut_at_line_ends_and_nothing_is_lost(read: Read, tmp_path: Path) -> None:
    text = "".join(f"line {number}\n" for number in range(300_000))
    (tmp_path / "long.txt").write_text(text)
    documents = read("long.txt")
    assert len(documents) > 2
    assert all(document.endswith("\n") for document in documents)
    assert "".join(documents) == text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["empty.txt holds no text"]),
        ("blank.txt", b" \n\n", ["blank.txt holds no text"]),
        ("empty.jsonl", b"", ["empty.jsonl holds no text"]),
        ("latin.txt", "Übung".encode("latin-1"), ["latin.txt cannot be decoded", "UTF-8"]),
        ("latin.jsonl", '{"text": "Übung"}\n'.encode("latin-1"), ["latin.jsonl cannot be decoded"]),
        ("broken.jsonl", b'{"text": "x"}\n{"text": \n', ["broken.jsonl cannot be read", "JSON parse error"]),
        ("broken.parquet", b"not parquet", ["broken.parquet cannot be read", "Parquet"]),
        ("numbers.jsonl", b'{"text": 1}\n', ["Column 'text' of numbers.jsonl holds int"]),
        ("several.jsonl", b'{"a": "x", "b": "y"}\n', ["no column 'text'", "--column", "a, b"]),
    ],
)
def test_a_bad_file_is_refused(read: Read, tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError) as refusal:
        read(name)
    for word in words:
        assert word in str(refusal.value)


def test_a_missing_column_is_refused_with_those_that_there_are(read: Read, tmp_path: Path) -> None:
    write_table(tmp_path / "rows.csv")
    with pytest.raises(TextError, match=r"no column 'body'\. Expected one of id, text, title"):
        read("rows.csv", column="body")


@pytest.mark.parametrize("name", ["missing.txt", "missing", "folder/missing.jsonl", ""])
def test_a_missing_file_is_refused_before_anything_is_read(read: Read, tmp_path: Path, name: str) -> None:
    (tmp_path / "there.txt").write_text("x")
    documents = read_documents(["there.txt", name])
    with pytest.raises(TextError, match=r"no file|is a directory|is empty"):
        next(documents)


def test_a_data_set_that_cannot_be_reached_is_refused(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TextError, match=r"data set org/data@main:plain:test cannot be opened.*org/data"):
        read("org/data@main:plain:test")
