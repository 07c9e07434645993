"""Rows that are more than running text: conversations, prompts with completions, instructions, and ready tokens.

    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}      also `conversations` of from and value
    {"prompt": "...", "completion": "..."}                                       both may be lists of messages
    {"instruction": "...", "input": "...", "output": "..."}
    {"input_ids": [...], "labels": [...]}

`record_of` brings a row of a table into one of these forms, and `encode` makes tokens of it, by the tokenizer's chat
template, and says which of them are answers: what a model is asked for, its end included, and nothing that is given to
it. Which columns are meant is decided in `columns.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mha2gqa.errors import TextError
from mha2gqa.texts.local import Row
from mha2gqa.texts.spans import Span, answer_spans, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind: TypeAlias = Literal["text", "chat", "completion", "tokens"]

PAIRS = (("prompt", "completion"), ("instruction", "output"))
"""Columns of what is given and of what is to be answered."""
TOKENS = "input_ids"
_MASKS = ("completion_mask", "assistant_masks")
"""Columns that say which of ready tokens are answers, by TRL's names; `labels` are -100 for the others."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool", "model": "assistant"}
"""ShareGPT's names -> those of templates."""
_PARAGRAPH = "\n\n"


class Form(NamedTuple):
    """How rows of a table hold what is read."""

    kind: Kind
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """What `--column` calls it."""
        return "+".join(self.columns)


@dataclass(frozen=True)
class Record:
    """A row in one of the forms above, as a line of JSON, which a file of such rows would hold."""

    line: str

    def __len__(self) -> int:
        return len(self.line)

    @property
    def content(self) -> dict[str, Any]:
        """The row."""
        row: dict[str, Any] = json.loads(self.line)
        return row


Document: TypeAlias = str | Record
"""What is read: running text, or a row that is more."""


class Encoded(NamedTuple):
    """Tokens of a document."""

    ids: Sequence[int]
    answers: Sequence[bool] | None = None
    """Which of them are answers; None where nobody is asked anything."""
    is_whole: bool = False
    """Whether special tokens are where they must be, so that none is put before them."""
    is_completion: bool = False
    """Whether the row has a part of its own for the answer."""


def loaded(value: Any) -> Any:
    """Return a value, or what the JSON in it says: a csv has no lists."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def is_chat(value: Any) -> bool:
    """Return whether a value is a list of turns: a role and what is said or called."""
    turns = loaded(value)
    return isinstance(turns, list) and bool(turns) and all(map(_is_turn, turns))


def is_tokens(value: Any) -> bool:
    """Return whether a value is a list of tokens."""
    ids = loaded(value)
    return isinstance(ids, list) and bool(ids) and all(type(one) is int for one in ids)


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role", turn.get("from")), str):
        return False
    return any(turn.get(key) is not None for key in ("content", "value", "tool_calls"))


def record_of(name: str, row: Row, form: Form) -> Record | None:
    """Return a row in the form that it has; None where it holds nothing.

    Args:
        name: Of the table.
        row: One of its rows.
        form: Of any kind but `text`.

    Raises:
        TextError: It holds something else.
    """
    values = [row.get(column) for column in form.columns]
    held = [loaded(one) if form.kind != "completion" or is_chat(one) else one for one in values]
    if any(not one for one in held):
        return None
    if form.kind == "chat":
        content: dict[str, Any] = {"messages": _turns(name, form.name, held[0], system=row.get("system"))}
    elif form.kind == "tokens":
        content = _tokens(name, row, held[0])
    else:
        content = _completion(name, row, form, *held)
    if form.kind != "tokens" and (tools := _without_nothing(loaded(row.get("tools")))):
        content["tools"] = tools
    return Record(json.dumps(content, ensure_ascii=False))


def _turns(name: str, column: str, turns: Any, system: Any = None) -> list[dict[str, Any]]:
    if not is_chat(turns):
        raise TextError(
            f"Column {column!r} of {name} holds {str(turns)[:80]!r}, which is no conversation",
            expected="a list of turns, each with a role and a content (or from and value)",
            remedy="Choose another with --column",
        )
    made = [_turn(turn) for turn in turns]
    if isinstance(system, str) and system.strip() and made[0]["role"] != "system":
        made.insert(0, {"role": "system", "content": system})
    return made


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn with the names and the values that templates know."""
    rest = {key: value for key, value in turn.items() if key not in ("role", "from", "content", "value")}
    role, said = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(said, list) and all(isinstance(one, Mapping) and isinstance(one.get("text"), str) for one in said):
        said = "".join(one["text"] for one in said)
    made = {"role": _ROLES.get(str(role), role), "content": "" if said is None else said, **_without_nothing(rest)}
    for call in made.get("tool_calls", ()):
        called = call.get("function", call)
        called["arguments"] = _arguments(called.get("arguments"))
    return made


def _arguments(given: Any) -> Any:
    """Return a call's arguments as templates take them: a mapping; OpenAI's are JSON in a string."""
    try:
        return json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return given


def _without_nothing(value: Any) -> Any:
    """Return a value without keys that hold nothing: in a parquet file every turn has the keys of all."""
    if isinstance(value, Mapping):
        return {key: _without_nothing(one) for key, one in value.items() if one is not None}
    return [_without_nothing(one) for one in value] if isinstance(value, list) else value


def _completion(name: str, row: Row, form: Form, given: Any, answer: Any) -> dict[str, Any]:
    if isinstance(given, list) and isinstance(answer, list):
        columns = zip(form.columns, (given, answer), strict=True)
        return {column: _turns(name, column, turns) for column, turns in columns}
    if not (isinstance(given, str) and isinstance(answer, str)):
        raise TextError(
            f"Columns {form.name} of {name} hold {type(given).__name__} and {type(answer).__name__}",
            expected="two strings, or two lists of messages",
            remedy="Choose others with --column",
        )
    more = row.get("input") if form.columns[0] == "instruction" else None
    return {form.columns[0]: given, **({"input": more} if more else {}), form.columns[1]: answer}


def _tokens(name: str, row: Row, ids: Any) -> dict[str, Any]:
    if not is_tokens(ids):
        raise TextError(
            f"Column {TOKENS!r} of {name} holds {str(ids)[:80]!r}",
            expected="a list of tokens",
            remedy="Choose another with --column",
        )
    masks = {key: value for key in (*_MASKS, "labels") if len(value := loaded(row.get(key)) or ()) == len(ids)}
    return {TOKENS: ids, **masks}


def encode(record: Record, tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """Return the tokens of a record, and which of them are answers.

    Args:
        record: As `record_of` gives it.
        tokenizer: Of the model that will read them, with its chat template. Prompts and instructions that are strings
            do without one: what is to be answered then stands behind them.

    Raises:
        TextError: There is no template, or it refuses the conversation; or the tokenizer does not know a token.
    """
    row = record.content
    if TOKENS in row:
        return _ready(row, tokenizer)
    columns = next((pair for pair in PAIRS if pair[0] in row), None)
    if columns is None:
        messages, first = row["messages"], 0
    else:
        given, answer = (row[column] for column in columns)
        given = _PARAGRAPH.join(filter(None, (given, row.get("input")))) if isinstance(given, str) else given
        if isinstance(given, str) and not tokenizer.chat_template:
            return _plain(given, answer, tokenizer, _PARAGRAPH if columns[0] == "instruction" else "")
        if isinstance(given, str):
            given, answer = [{"role": "user", "content": given}], [{"role": "assistant", "content": answer}]
        messages, first = [*given, *answer], len(given)
    text = render(tokenizer, messages, row.get("tools"))
    spans = answer_spans(tokenizer, messages, row.get("tools"), text, first)
    ids, answers = _tokenised(text, spans, tokenizer)
    return Encoded(ids, answers, is_whole=True, is_completion=columns is not None)


def _ready(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    ids = row[TOKENS]
    known = len(tokenizer)
    if wrong := [one for one in ids if not 0 <= one < known]:
        raise TextError(
            f"{TOKENS!r} hold token {wrong[0]}, and the tokenizer knows {known}",
            expected="tokens of the model's own tokenizer",
            remedy="Give the text that they were made of",
        )
    for column in _MASKS:
        if column in row:
            return Encoded(ids, [bool(one) for one in row[column]], is_whole=True, is_completion=True)
    answers = [one != -100 for one in row["labels"]] if "labels" in row else None
    is_divided = answers is not None and not all(answers)
    return Encoded(ids, answers if is_divided else None, is_whole=True, is_completion=is_divided)


def _plain(given: str, answer: str, tokenizer: "PreTrainedTokenizerBase", between: str) -> Encoded:
    """Return a prompt and its completion without a template, with the end of text behind them, as TRL has it."""
    start = len(given + between)
    ids, answers = _tokenised(given + between + answer, [Span(start, start + len(answer))], tokenizer)
    end = tokenizer.eos_token_id
    ends = [] if end is None or end == tokenizer.bos_token_id else [end]
    return Encoded([*ids, *ends], [*answers, *(True for _ in ends)], is_completion=True)


def _tokenised(text: str, spans: Sequence[Span], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[bool]]:
    """Return the tokens of a text as it stands, and for each whether its first character lies in one of the spans.

    A tokenizer that does not say where its tokens lie gets the parts one after the other.
    """
    if tokenizer.is_fast:
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        marks = bytearray(len(text) + 1)
        for start, end in spans:
            marks[start:end] = b"\1" * (end - start)
        return list(made["input_ids"]), [bool(marks[start]) for start, _ in made["offset_mapping"]]
    ids: list[int] = []
    answers: list[bool] = []
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    for number, (start, end) in enumerate(pairwise(edges)):
        part = tokenizer(text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
        ids += part
        answers += [number % 2 == 1] * len(part)
    return ids, answers
