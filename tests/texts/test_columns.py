"""Which column is read: named, usual or the only one that can be; and where there is a question, it is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.errors import TextError
from mha2gqa.texts.chats import Record
from mha2gqa.texts.columns import choose_forms, choose_pair
from mha2gqa.texts.documents import read_documents, read_pairs

SAID = [f"A sentence of some words, which has the number {number}." for number in range(20)]
CHAT = [[{"role": "user", "content": said}, {"role": "assistant", "content": "Yes."}] for said in SAID]


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Rows of columns; what is no list is in every one."""
    return [
        {name: values[number] if isinstance(values, list) else values for name, values in columns.items()}
        for number in range(20)
    ]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (rows(content=SAID, id=[*range(20)]), "content"),
        (rows(content=SAID, meta={"source": "a"}), "content"),
        (rows(content=SAID, tags=[["a", "b"]] * 20), "content"),
        (rows(content=SAID, id=[f"{number:04}" for number in range(20)]), "content"),
        (rows(text=SAID, turns=[[said, "Yes."] for said in SAID]), "text"),
        (rows(text="always the same", messages=CHAT), "messages"),
        (rows(messages=CHAT, prompt=SAID, prompt_id=SAID), "messages"),
        (rows(dialog=CHAT, topic=SAID), "dialog"),
        (rows(prompt=SAID, completion=SAID, source="s"), "prompt+completion"),
        (rows(instruction=SAID, input="", output=SAID), "instruction+output"),
        (rows(input_ids=[[1, 2]] * 20, attention_mask=[[1, 1]] * 20), "input_ids"),
        (rows(text="always the same"), "text"),
        (
            rows(story=["\u5f88\u4e45\u4ee5\u524d\u6709\u4e00\u4e2a\u4eba" + str(number) for number in range(20)]),
            "story",
        ),
        ([{"id": 1}, {"id": 2, "body": "Later rows count as well."}], "body"),
    ],
)
def test_the_one_that_is_meant(table: list[dict[str, Any]], column: str) -> None:
    assert [form.name for form in choose_forms("table", table, None)] == [column]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (rows(text=SAID, messages=CHAT), "--column messages"),
        (rows(text=SAID, instruction=SAID, output=SAID), "--column instruction+output"),
        (rows(messages=CHAT, conversations=CHAT), "--column conversations"),
        (rows(text=SAID, input_ids=[[1, 2]] * 20), "--column input_ids"),
        (rows(turns=[[said, "Yes."] for said in SAID], persona=SAID), "conversations, in 'turns'"),
        (rows(exchange=CHAT, system=SAID), "conversations, in 'exchange'"),
        (rows(Conversations=[{"human": said} for said in SAID], prompt=SAID), "conversations, in 'Conversations'"),
        ([*rows(system=SAID)[:3], {"system": "s", "chosen": CHAT[0]}], "conversations, in 'chosen'"),
        (rows(prompt="You are helpful and think first.", ids=[[1, 2]] * 20), "in every row"),
        (rows(label=["good", "bad"] * 10, pixels=[[1, 2]] * 20), "a few characters a row"),
        (rows(uuid=[f"550e8400-e29b-41d4-{number:04}" for number in range(20)]), "single words"),
        (rows(url=[f"https://example.org/{number}" for number in range(20)], n=3), "single words"),
        (rows(a=SAID, b=SAID), "2 columns of strings"),
        (rows(a=[1] * 20), "0 columns of strings"),
    ],
)
def test_a_question_is_asked(table: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(TextError) as refusal:
        choose_forms("table", table, None)
    assert says in str(refusal.value)
    assert "--column" in str(refusal.value)
    assert all(key in str(refusal.value) for row in table for key in row)


def test_what_is_named_is_taken() -> None:
    table = rows(messages=CHAT, source="a-corpus", translation={"en": "x"}, chosen=CHAT, prompt=SAID, completion=SAID)
    wanted = {"source": "text", "translation.en": "text", "chosen": "chat", "prompt+completion": "completion"}
    for column, kind in wanted.items():
        (form,) = choose_forms("table", table, column)
        assert (form.kind, form.name) == (kind, column)
    with pytest.raises(TextError, match=r"no column 'translation\.de'\. Expected one of messages, source"):
        choose_forms("table", table, "translation.de")


def test_rows_of_several_forms_are_each_read_in_theirs(tmp_path: Path) -> None:
    table = [{"text": SAID[0]}, {"messages": CHAT[1]}, {"text": SAID[2]}, {"id": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, table)))
    first, second, third = read_documents([str(tmp_path / "a.jsonl")])
    assert (first, third) == (SAID[0], SAID[2])
    assert isinstance(second, Record)
    assert second.content == {"messages": CHAT[1]}


def test_pairs_beside_a_chat() -> None:
    table = rows(id=[f"number {number}" for number in range(20)], answer=SAID, messages=CHAT)
    with pytest.raises(TextError, match=r"conversations, in 'messages'.*--source-column and --target-column"):
        choose_pair("table", table, (None, None))
    with pytest.raises(TextError, match="conversations"):
        choose_pair("table", table, ("answer", None))
    assert choose_pair("table", table, ("id", "answer")) == ["id", "answer"]
    assert choose_pair("table", rows(source=SAID, target=SAID, messages=CHAT), (None, None)) == ["source", "target"]
    assert choose_pair("table", rows(q=SAID, a=SAID, n=1), (None, None)) == ["q", "a"]


def test_pairs_of_rows_under_a_key(tmp_path: Path) -> None:
    content = {"name": "corpus", "rows": rows(source=SAID, target=SAID)}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(TextError, match=r"jq -c '\.rows\[\]'"):
        next(read_pairs([str(tmp_path / "a.json")]))
