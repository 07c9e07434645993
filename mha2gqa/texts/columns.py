"""Which columns of a table hold its text: those that were named, else the usual ones, else the only ones that can.

Judged by the first rows together. Where a row holds text in two forms (`text` beside `messages`), or where the only
column of strings holds names and labels, nothing is taken for granted: the question is asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mha2gqa.errors import TextError
from mha2gqa.texts.chats import PAIRS, TOKENS, Form, is_chat, is_tokens
from mha2gqa.texts.local import Row

SAMPLE, SAMPLE_SIZE = 64, 1 << 20
"""Rows that columns are judged by, at most, and characters in them."""

_CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
_FEW_ROWS = 4
"""Below which nothing is said of what a column usually holds."""
_SHORT = 8
"""Characters; documents are longer."""


def choose_forms(name: str, rows: Sequence[Row], column: str | None) -> tuple[Form, ...]:
    """Return how the rows of a table hold what is read: one form, or several of which each row has one.

    Args:
        name: Of the table.
        rows: Its first ones.
        column: As the user named it; `prompt+completion` names two.

    Raises:
        TextError: There is no such column, or it is not clear which one is meant.
    """
    forms = _forms(rows)
    if column is not None:
        return (next((form for form in forms if form.name == column), None) or _named(name, rows, column),)
    for row in rows:
        form_of(name, row, forms)
    if forms:
        return forms
    _refuse_chats(name, rows, "as `messages`, a list of turns with a role and a content each", "--column")
    strings = _strings(rows)
    there = ", ".join(_columns(rows))
    if len(strings) != 1:
        raise TextError(
            f"{name} has no column 'text' and {len(strings)} columns of strings",
            expected="one column to read",
            remedy=f"Choose with --column; there are {there}",
        )
    if why := _is_no_text([row[strings[0]] for row in rows if isinstance(row.get(strings[0]), str)]):
        raise TextError(
            f"{name} has no column 'text', and its only column of strings, {strings[0]!r}, {why}",
            expected="a column of documents",
            remedy=f"If it is meant, choose it with --column; there are {there}",
        )
    return (Form("text", (strings[0],)),)


def form_of(name: str, row: Row, forms: Sequence[Form]) -> Form | None:
    """Return which of some forms a row has; None where it has none.

    Raises:
        TextError: It has several.
    """
    if len(forms) == 1:
        return forms[0]
    held = [form for form in forms if all(row.get(column) for column in form.columns)]
    if len(held) > 1:
        choices = ", ".join(f"--column {form.name}" for form in held)
        raise TextError(
            f"{name} has rows with text in {len(held)} forms; there are {', '.join(row)}",
            expected="one of them to read",
            remedy=f"Choose one: {choices}",
        )
    return held[0] if held else None


def _forms(rows: Sequence[Row]) -> tuple[Form, ...]:
    """Return the forms with the usual names that some rows have."""
    there = _columns(rows)
    forms = [Form("chat", (key,)) for key in there if key.lower() in _CHATS and _any(is_chat, rows, key)]
    forms += [Form("completion", pair) for pair in PAIRS if all(_any(bool, rows, key) for key in pair)]
    forms += [Form("tokens", (TOKENS,))] if _any(is_tokens, rows, TOKENS) else []
    texts = [row["text"] for row in rows if isinstance(row.get("text"), str)]
    if "text" in there and not (_is_no_text(texts) and (forms or _chats(rows))):
        forms.insert(0, Form("text", ("text",)))
    return tuple(forms)


def _any(holds: Callable[[Any], bool], rows: Sequence[Row], key: str) -> bool:
    return any(holds(row.get(key)) for row in rows)


def _named(name: str, rows: Sequence[Row], column: str) -> Form:
    """Return the form of a column, or of two, of any name."""
    columns = tuple(column.split("+"))
    if columns in PAIRS:
        for one in columns:
            _require(name, rows, one, "--column")
        return Form("completion", columns)
    _require(name, rows, column, "--column")
    if _any(is_chat, rows, column):
        return Form("chat", (column,))
    return Form("text", (column,))


def choose_pair(
    name: str,
    rows: Sequence[Row],
    columns: Sequence[str | None],
    usual: Sequence[str] = ("source", "target"),
    options: Sequence[str] = ("--source-column", "--target-column"),
) -> list[str]:
    """Return the columns of a table that hold sources and targets.

    Args:
        name: Of the table.
        rows: Its first ones.
        columns: As the user named them.
        usual: The names that are taken where they are there.
        options: With which the user names them.

    Raises:
        TextError: There are no such columns, or it is not clear which ones are meant.
    """
    for column, option in zip(columns, options, strict=True):
        if column is not None:
            _require(name, rows, column, option)
    there = _columns(rows)
    named = [column or (one if one in there else None) for column, one in zip(columns, usual, strict=True)]
    if None not in named:
        return [str(one) for one in named]
    _refuse_chats(name, rows, "as text, in one column each", " and ".join(options))
    left = [key for key in _strings(rows) if key not in named]
    if len(left) != named.count(None):
        raise TextError(
            f"{name} has no columns 'source' and 'target', and {len(left)} columns of strings",
            expected="a column of sources and one of targets",
            remedy=f"Choose with {' and '.join(options)}; there are {', '.join(there)}",
        )
    return [column or left.pop(0) for column in named]


def value_of(row: Row, column: str) -> Any:
    """Return the value of a column, or of one inside another (`translation.en`).

    Raises:
        KeyError: There is none.
    """
    if column in row:
        return row[column]
    outer, dot, inner = column.partition(".")
    if not dot or not isinstance(row.get(outer), dict):
        raise KeyError(column)
    return value_of(row[outer], inner)


def _require(name: str, rows: Sequence[Row], column: str, option: str) -> None:
    for row in rows:
        try:
            value_of(row, column)
        except KeyError:
            continue
        return
    there = ", ".join(_columns(rows))
    raise TextError(f"{name} has no column {column!r}", expected=f"one of {there}", remedy=f"Choose with {option}")


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _strings(rows: Sequence[Row]) -> list[str]:
    """Return the columns of strings; a csv's numbers are none."""
    return [key for key in _columns(rows) if any(_is_words(row.get(key)) for row in rows)]


def _is_words(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value or "0")
    except ValueError:
        return True
    return False


def _refuse_chats(name: str, rows: Sequence[Row], way: str, option: str) -> None:
    if chats := _chats(rows):
        raise TextError(
            f"{name} holds conversations, in {', '.join(map(repr, chats))}; there are {', '.join(_columns(rows))}",
            expected=f"what is read {way}",
            remedy=f"Write it so, or choose another column with {option}",
        )


def _chats(rows: Sequence[Row]) -> list[str]:
    return [key for key in _columns(rows) if any(_is_chat(key, row.get(key)) for row in rows)]


def _is_chat(key: str, value: Any) -> bool:
    is_named = key.lower() in _CHATS and isinstance(value, (list, dict))
    return is_named or (isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value))


def _is_no_text(values: Sequence[str]) -> str:
    """Return why the strings of a column are no documents; empty where they may be some."""
    if len(values) < _FEW_ROWS:
        return ""
    if len(set(values)) == 1:
        return f"holds {values[0][:40]!r} in every row"
    if all(len(value) < _SHORT for value in values):
        return "holds a few characters a row"
    if all(value.isascii() and len(value.split()) < 2 for value in values):
        return f"holds single words, such as {values[0][:40]!r}"
    return ""
