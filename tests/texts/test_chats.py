"""Conversations become the tokens that the template writes, and exactly the answers in them are known as such."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import torch

from mha2gqa.errors import TextError
from mha2gqa.texts.blocks import pack_marked
from mha2gqa.texts.chats import Record, encode
from mha2gqa.texts.documents import read_documents
from tests.texts.chats import CHATML, INST, LLAMA, TELLS, THINKS, character_tokenizer, turns, write_rows

TALK = turns("HI", " YO", "MORE?", "NO\n")


def record(**row: Any) -> Record:
    return Record(json.dumps(row))


def answers(encoded: Any, tokenizer: Any) -> list[str]:
    """The runs of answers, as text."""
    runs: list[list[int]] = [[]]
    for token, marked in zip(encoded.ids, encoded.answers, strict=True):
        runs[-1:] = [[*runs[-1], token]] if marked else [runs[-1], []]
    return [tokenizer.decode(run).replace(" ", "") for run in runs if run]


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHATML, ["YO<|im_end|>", "NO\n<|im_end|>"]),
        (LLAMA, ["YO<|eot|>", "NO<|eot|>"]),
        (TELLS, ["YO<|eot|>", "NO\n<|eot|>"]),
        (THINKS, ["YO<|im_end|>", "<think></think>NO\n<|im_end|>"]),
        (INST, ["YO</s>", "NO\n</s>"]),
    ],
    ids=["chatml", "llama", "generation", "thoughts", "inst"],
)
@pytest.mark.parametrize("is_fast", [True, False])
def test_exactly_the_answers_are_marked(
    template: str, wanted: list[str], is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = character_tokenizer(template)
    monkeypatch.setattr(type(tokenizer), "is_fast", is_fast)
    made = encode(record(messages=TALK), tokenizer)
    assert list(made.ids) == tokenizer.apply_chat_template(TALK)["input_ids"]
    assert answers(made, tokenizer) == wanted
    assert made.is_whole
    assert not made.is_completion


@pytest.mark.parametrize("template", [CHATML, LLAMA, TELLS])
def test_of_a_prompt_of_turns_no_answer_counts(template: str) -> None:
    tokenizer = character_tokenizer(template)
    made = encode(record(prompt=turns("A", "B", "C"), completion=[{"role": "assistant", "content": "D"}]), tokenizer)
    assert [one[0] for one in answers(made, tokenizer)] == ["D"]
    assert made.is_completion


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "ADD 1", "completion": "2"}, "ADD 1"),
        ({"prompt": "[1, 1]", "completion": "2"}, "[1, 1]"),
        ({"instruction": "ADD", "input": "1 AND 1", "output": "2"}, "ADD\n\n1 AND 1"),
        ({"instruction": "ADD 1", "input": "", "output": "2"}, "ADD 1"),
    ],
)
def test_prompts_and_instructions_with_and_without_a_template(row: dict[str, str], prompt: str, tmp_path: Path) -> None:
    (found,) = read_documents([write_rows(tmp_path / "a.jsonl", row)])
    assert isinstance(found, Record)
    chat, plain = character_tokenizer(LLAMA), character_tokenizer()
    made = encode(found, chat)
    assert list(made.ids) == chat.apply_chat_template(turns(prompt, "2"))["input_ids"]
    assert answers(made, chat) == ["2<|eot|>"]
    without = encode(found, plain)
    between = "\n\n" if "instruction" in row else ""
    assert list(without.ids) == plain(f"{prompt}{between}2</s>")["input_ids"]
    assert answers(without, plain) == ["2</s>"]
    assert not without.is_whole


SHARED = [{"from": "human", "value": "HI"}, {"from": "gpt", "value": "YO"}]
CALLS = [
    {"role": "user", "content": "HI", "tool_calls": None},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
    {"role": "tool", "content": "7", "tool_calls": None},
    {"role": "assistant", "content": "YO", "tool_calls": None},
]
PARTS = [{"role": role, "content": [{"type": "text", "text": role[0]}]} for role in ("user", "assistant")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"conversations": SHARED}, ["BE KIND", "user\nHI<|im_end|>\n<|im_start|>assistant\nYO<|im_end|>"]),
        ({"conversations": SHARED, "system": "BE GRUMPY"}, ["<|im_start|>system\nBE GRUMPY<|im_end|>"]),
        ({"messages": PARTS}, ["user\nu<|im_end|>", "assistant\na<"]),
        (
            {"messages": CALLS, "tools": [{"name": "f", "type": None}]},
            ['TOOLS [{"name": "f"}]', 'CALL {"name": "f", "arguments": {"x": 1}}<', "tool\n7<", "assistant\nYO<"],
        ),
    ],
    ids=["sharegpt", "system", "parts", "tools"],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv", "json.gz", "jsonl.zst", "arrow", "saved", "splits"])
def test_turns_and_tools_are_kept_in_every_kind_of_file(
    row: dict[str, Any], says: list[str], ending: str, tmp_path: Path
) -> None:
    found, _ = read_documents([str(_written(tmp_path, [row, row], ending))])
    assert isinstance(found, Record)
    tokenizer = character_tokenizer(CHATML)
    text = tokenizer.decode(encode(found, tokenizer).ids, clean_up_tokenization_spaces=False)
    assert not [part for part in says if part.replace(" ", "") not in text.replace(" ", "")], text


def _written(folder: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    """Write rows in every way in which they are read."""
    path, text = folder / f"rows.{ending}", "".join(json.dumps(row) + "\n" for row in rows)
    if ending in ("arrow", "saved", "splits", "parquet"):
        made = datasets.Dataset.from_list(
            [{k: json.dumps(v) if k == "tools" else v for k, v in r.items()} for r in rows]
        )
        if ending == "parquet":
            made.to_parquet(path)
        elif ending == "splits":
            datasets.DatasetDict(train=made.select([0]), test=made).save_to_disk(path)
        else:
            made.save_to_disk(path)
        return next(path.glob("*.arrow")) if ending == "arrow" else path
    if ending == "csv":
        import pandas

        pandas.DataFrame([{k: json.dumps(v) if k != "system" else v for k, v in r.items()} for r in rows]).to_csv(path)
    elif ending == "json.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif ending == "jsonl.zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text.encode())
    else:
        path.write_text(text)
    return path


def test_plain_text_may_be_compressed_and_what_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"line {number}\n" for number in range(9000)).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole)
    (document,) = read_documents([str(tmp_path / "a.txt.gz")])
    assert document.startswith("line 0\n")
    assert document.endswith("line 8999\n")
    for name in ("b.txt.gz", "b.jsonl.gz"):
        (tmp_path / name).write_bytes(whole[:99])
        with pytest.raises(TextError, match="cannot be read"):
            list(read_documents([str(tmp_path / name)]))


def test_conversations_without_a_template_are_one_refusal() -> None:
    with pytest.raises(TextError, match=r"no chat template.*chat_template\.jinja.*--column"):
        encode(record(messages=TALK), character_tokenizer())
    with pytest.raises(TextError, match="refuses a conversation of assistant, user: roles must alternate"):
        encode(record(messages=TALK[::-1][:2]), character_tokenizer(INST))


@pytest.mark.parametrize(
    ("row", "marked"),
    [
        ({"labels": [-100, -100, 7]}, [False, False, True]),
        ({"completion_mask": [0, 1, 1]}, [False, True, True]),
        ({"labels": [5, 6, 7]}, None),
        ({}, None),
    ],
)
def test_ready_tokens_are_taken_as_they_are(row: dict[str, Any], marked: Any, tmp_path: Path) -> None:
    (found,) = read_documents([write_rows(tmp_path / "a.jsonl", {"input_ids": [5, 6, 7], **row})])
    assert isinstance(found, Record)
    made = encode(found, character_tokenizer())
    assert (list(made.ids), made.answers) == ([5, 6, 7], marked)
    for wrong in (5000, -1):
        with pytest.raises(TextError, match=f"token {wrong}, and the tokenizer knows"):
            encode(record(input_ids=[5, wrong]), character_tokenizer())


@pytest.mark.parametrize("row", [{"messages": [["HI"]]}, {"messages": "HI"}, {"messages": [{"role": "user"}]}])
def test_a_row_that_is_no_conversation_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"messages": TALK}, row)
    with pytest.raises(TextError, match=r"'messages' of .* which is no conversation"):
        list(read_documents([path]))


def test_blocks_carry_the_marks_and_no_second_beginning(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = character_tokenizer(LLAMA)
    documents = ["AB", record(messages=turns("C", "D"))]
    ids, marks = pack_marked(documents, tokenizer, context=21, tokens=21)
    text = "<s>AB<s><|start|>user<|end|>\n\nC<|eot|>"
    assert marks is None
    assert ids[0].tolist() == (tokenizer(text + "<|start|>assistant")["input_ids"])[:21]
    ids, marks = pack_marked(documents, tokenizer, context=29, tokens=29)
    assert marks is not None
    assert tokenizer.decode(ids[0][marks[0]]).replace(" ", "") == "D<|eot|>"
    single = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = single  # begins every text with BOS, as Llama's does
    opened, marks = pack_marked(documents[1:] * 2, tokenizer, context=15, tokens=60)
    assert marks is not None
    assert [row.count(1) for row in opened.tolist()][:1] == [1], "the template's own is not doubled"
    assert torch.equal(marks & (opened == 1), torch.zeros_like(marks))


def test_files_are_mixed_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", *({"text": f"{number:09}a"} for number in range(300)))
    Path("b.txt").write_text("".join(f"{number:08}b\n" for number in range(90_000)))
    found = [one for one in read_documents(["a.jsonl:3", "b.txt"]) if isinstance(one, str)]
    taken = {kind: sum(len(one) for one in found if one.strip()[-1] == kind) for kind in "ab"}
    assert taken["a"] == 3000, "it ends where one is used up"
    assert taken["b"] <= 1000 + 2 * 4096
    Path("a.jsonl:3").write_text("a path")
    assert list(read_documents(["a.jsonl:3"])) == ["a path"]
    with pytest.raises(TextError, match="has no weight"):
        list(read_documents(["b.txt:0"]))
    with pytest.raises(TextError, match=r"no file 'c\.txt'"):
        list(read_documents(["c.txt:2"]))
