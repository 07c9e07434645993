"""Local tables of every form, whole and hostile: rows come back as they are, or there is one refusal; never a crash.

Files of a gigabyte are sparse here; that little memory is taken is held against the process's own peak.
"""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pandas
import pytest

from mha2gqa.errors import TextError
from mha2gqa.texts import local
from mha2gqa.texts.documents import read_documents
from mha2gqa.texts.local import read_local

ROWS = [{"text": f"row {number} {'é' * number}", "n": number * 1.5} for number in range(40)]


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(params=[1 << 20, 7])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CHUNK", request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=3),
        " \n" + json.dumps(ROWS, ensure_ascii=False) + "\n\n",
        "\ufeff" + json.dumps(ROWS),
        "\n".join(map(json.dumps, ROWS)),
        "".join(json.dumps(row, indent=1) for row in ROWS),
    ],
    ids=["list", "indented", "spaced", "marked", "lines", "one behind the other"],
)
def test_json_of_every_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    assert list(read_local(tmp_path / "rows.json")) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "ROWS.JSONL"])
def test_objects_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    assert list(read_local(tmp_path / name)) == ROWS


@pytest.mark.parametrize("separator", [",", "\t"])
def test_csv(tmp_path: Path, separator: str) -> None:
    rows = [{"text": 'quotes "here", and\nlines\there'}, {"text": "plain"}, {"text": "NA"}]
    path = tmp_path / ("rows.csv" if separator == "," else "rows.tsv")
    pandas.DataFrame(rows).assign(id=range(3)).to_csv(path, sep=separator, index=False)
    assert list(read_local(path)) == [{**row, "id": str(number)} for number, row in enumerate(rows)]


def test_parquet(tmp_path: Path) -> None:
    pandas.DataFrame(ROWS * 9).to_parquet(tmp_path / "rows.parquet")
    assert list(read_local(tmp_path / "rows.parquet")) == ROWS * 9


def test_a_short_row_lacks_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,text\n1,x\n\n2\n")
    assert list(read_local(tmp_path / "rows.csv")) == [{"a": "1", "text": "x"}, {"a": "2", "text": None}]


def read(path: Path, column: str | None = None) -> list[str]:
    return list(read_documents([str(path)], column))


@pytest.mark.parametrize("deep", [999, 20_000, 200_000])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_brackets_without_end(tmp_path: Path, deep: int, name: str, bracket: str) -> None:
    opened = bracket[0] * deep if bracket == "[]" else '{"a":' * deep + "1"
    (tmp_path / name).write_text('{"text": "x", "more": ' + opened + bracket[1] * deep + '}\n{"text": "y"}\n')
    with pytest.raises(TextError, match="row 1: it is nested too deep"):
        read(tmp_path / name)


@pytest.mark.parametrize("start", ["", '{"text": "', '[{"text": "', "text\n", "\n" * 99])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "plain.txt", "plain.log"])
def test_a_line_of_a_gigabyte(tmp_path: Path, name: str, start: str) -> None:
    with (tmp_path / name).open("w") as file:
        file.write(start)
        file.truncate(1 << 30)
    before = peak()
    documents = read_documents([str(tmp_path / name)], "text")
    if name.startswith("plain"):
        assert len(next(documents)) < 4 << 20
    else:
        with pytest.raises(TextError):
            next(documents)
    assert peak() - before < 700 << 20


def test_a_million_lines_of_a_quoted_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "LONGEST", 1 << 16)
    (tmp_path / "rows.csv").write_text('text\n"' + "word\n" * 100_000)
    with pytest.raises(TextError, match="field larger than field limit"):
        read(tmp_path / "rows.csv")


def test_one_long_value_that_many_rows_share(tmp_path: Path) -> None:
    """A dictionary in a parquet file: a few kilobytes that decode to gigabytes."""
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, "int32"), ["x" * (1 << 20)])
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "rows.parquet", compression="zstd")
    before = peak()
    documents = read_documents([str(tmp_path / "rows.parquet")])
    assert [len(next(documents)) for _ in range(200)] == [1 << 20] * 200
    assert peak() - before < 700 << 20


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{"version": "one", "data": [{"text": "x"}]}', ["'version', 'data'", "jq -c '.data[]'"]),
        ("a.json", '{"text": ["x", "y"]}', ["one JSON object", "'text'", "jq"]),
        ("a.json", '{"text": {"0": "x", "1": "y"}}', ["one JSON object", "'text'"]),
        ("a.json", '["x", "y"]', ["row 1 is a JSON str"]),
        ("a.json", "3", ["row 1 is a JSON int"]),
        ("a.json", '[{"text": "x"}', ["JSON parse error in row 2"]),
        ("a.json", '[{"text": "x"}] 3', ["'3' behind the list"]),
        ("a.json", '[{"text": "x"} {"text": "y"},,]', ["JSON parse error in row 3"]),
        ("a.json", '{"text": "x"', ["JSON parse error in row 1"]),
        ("a.jsonl", '{"text": "x"}\nnull\n', ["row 2 is a JSON NoneType"]),
        ("a.jsonl", '{"text": "x"}\n["y"]\n', ["row 2 is a JSON list"]),
        ("a.jsonl", '{"text": "x"} {"text": "y"}\n', ["JSON parse error in row 1"]),
        ("a.csv", "a;text\n1;x\n", ["'a;text', which seems to be separated by ';'"]),
        ("a.csv", "a\ttext\n1\tx\n", ["seems to be separated by"]),
        ("a.csv", "text,text\nx,y\n", ["two of its columns have one name"]),
        ("a.csv", "a,text\n1,x,2\n", ["line 2 has 3 fields, and the header 2"]),
        ("a.csv", 'a,text\n1,"x\n', ["line 2: unexpected end of data"]),
        ("a.csv", "text\n", ["holds no text"]),
        ("a.json", "[]", ["holds no text"]),
        ("a.json", " \n", ["holds no text"]),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError) as refusal:
        read(tmp_path / name)
    assert not [word for word in words if word not in str(refusal.value)], str(refusal.value)


def test_one_object_may_be_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "x", "id": 3, "none": null}')
    assert read(tmp_path / "a.json") == ["x"]


@pytest.mark.parametrize("half", ["\\ud800", "a\\udfff\\ud83d\\ude00"])
def test_half_characters_become_whole_ones(tmp_path: Path, half: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x' + half + 'y"}')
    (text,) = read(tmp_path / "a.jsonl")
    assert text.encode().decode() == text
    assert (text[0], text[-1], "\ufffd" in text) == ("x", "y", True)


def test_damaged_parquet_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    import random

    pandas.DataFrame({"text": ["words of a row"] * 50, "n": range(50)}).to_parquet(tmp_path / "a.parquet")
    whole, rng = (tmp_path / "a.parquet").read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        (tmp_path / "a.parquet").write_bytes(damaged)
        try:
            read(tmp_path / "a.parquet", "text")
        except TextError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["fifo.txt", "fifo.jsonl", "/dev/zero", "/dev/null"])
def test_what_can_be_read_once_only_or_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    if name.startswith("fifo"):
        os.mkfifo(name)
    with pytest.raises(TextError, match=f"{name} is no ordinary file"):
        next(read_documents([name]))


@pytest.mark.parametrize("name", [300 * "x", "a/" * 3000 + "b.txt", "~nobody-here/x.txt"])
def test_names_that_cannot_be_opened(name: str) -> None:
    with pytest.raises(TextError, match=r"cannot be opened|no file"):
        next(read_documents([name]))


def test_rows_that_lack_the_column_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"title": "t"}, {"text": "x"}, {"text": None}, {"text": "y", "more": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "a.jsonl") == ["x", "y"]
