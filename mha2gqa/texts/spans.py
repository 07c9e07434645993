"""Conversations by a tokenizer's chat template, and where in the rendering the answers are.

A template may say itself what the model writes, by `{% generation %}`. Else an answer begins where the rendering of the
turns before it, opened for an answer, ends, and it ends where the rendering with it does: at the token that ends a
turn, if there is one (the line feed behind ChatML's `<|im_end|>` is nobody's answer). Templates that render a turn
otherwise when others follow (Qwen3 drops what was thought) are asked with another content in its place, which shows
where the content is and what stands behind it.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2.exceptions import TemplateError

from mha2gqa.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAYS_ITSELF = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OTHER = "\ue000mha2gqa\ue001"
"""A content that no conversation has."""


class Span(NamedTuple):
    """Characters of a rendering."""

    start: int
    end: int


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Any = None, *, opened: bool = False
) -> str:
    """Return a conversation as text, with all its special tokens.

    Args:
        tokenizer: With a chat template.
        messages: The turns, each with `role` and `content`.
        tools: JSON schemas of functions that the model may call.
        opened: Whether an answer is to follow.

    Raises:
        TextError: There is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise TextError(
            "The tokenizer has no chat template, and the text holds conversations",
            expected="chat_template.jinja, or a template in tokenizer_config.json, beside the weights",
            remedy="Copy it from the chat model, or choose a column of text with --column",
        )
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=opened, tokenize=False, continue_final_message=False
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:  # raised by templates' own code
        roles = ", ".join(str(turn.get("role")) for turn in messages)
        raise TextError(
            f"The chat template refuses a conversation of {roles}: {' '.join(str(error).split())[:200]}",
            expected="turns as the model was trained on",
            remedy="Leave such rows out, or choose another column with --column",
        ) from error
    return str(text)


def answer_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Any, text: str, first: int
) -> list[Span]:
    """Return where the answers are in a rendering, in order.

    Args:
        tokenizer: With a chat template.
        messages: The turns.
        tools: As `render` takes them.
        text: What `render` gives for them.
        first: Number of the first turn whose answer counts: of a prompt those before it do not.

    Raises:
        TextError: It cannot be told where an answer ends.
    """
    spans = _told(tokenizer, messages, tools)
    if spans is None:
        asked = [number for number, turn in enumerate(messages) if turn["role"] == "assistant"]
        spans = [_found(tokenizer, messages, tools, text, number) for number in asked if number >= first]
    elif first:
        before = render(tokenizer, messages[:first], tools, opened=True)
        spans = [span for span in spans if span.start >= _common(before, text)]
    return [span for span in spans if span.end > span.start]


def _told(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Any) -> list[Span] | None:
    """Return what the template says itself; None where it says nothing."""
    template = tokenizer.get_chat_template(None, tools)
    if not _SAYS_ITSELF.search(template):
        return None
    more: dict[str, Any] = dict(tokenizer.special_tokens_map)
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(  # apply_chat_template drops a span that begins with a space
        conversations=[list(messages)],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **more,
    )
    return [Span(*span) for span in rendered[1][0]]


def _found(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Any, text: str, number: int) -> Span:
    """Return where an answer is, by renderings of a part of the conversation."""
    opened = _attempted(tokenizer, messages[:number], tools, opened=True) if number else ""
    whole = _attempted(tokenizer, messages[: number + 1], tools)
    start = len(opened) if opened and text.startswith(opened) else None
    if whole and start is not None and text.startswith(whole):
        return Span(start, _end(tokenizer, text, start, len(whole)))
    changed = [*messages[:number], {**messages[number], "content": _OTHER}, *messages[number + 1 :]]
    other = _attempted(tokenizer, changed, tools)
    at = other.find(_OTHER)
    behind = other[at + len(_OTHER) :]
    if at < 0 or text[:at] != other[:at] or not text.endswith(behind):
        raise TextError(
            "The chat template does not show where an answer begins and ends",
            expected="a template that renders a turn alike when others follow, or says {% generation %}",
            remedy="Add {% generation %} to chat_template.jinja",
        )
    content_end = len(text) - len(behind)
    start = at if start is None else min(start, at)
    return Span(start, _next_special(tokenizer, text, content_end))


def _attempted(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Any, *, opened: bool = False
) -> str:
    """Return a rendering, or nothing where the template refuses this part of a conversation."""
    try:
        return render(tokenizer, messages, tools, opened=opened)
    except TextError:
        return ""


def _end(tokenizer: "PreTrainedTokenizerBase", text: str, start: int, end: int) -> int:
    """Return where an answer ends: behind its last special token, where nothing but space follows it."""
    stripped = text[start:end].rstrip()
    is_ended = any(one and stripped.endswith(one) for one in _specials(tokenizer))
    return start + len(stripped) if is_ended else end


def _next_special(tokenizer: "PreTrainedTokenizerBase", text: str, at: int) -> int:
    """Return where the special token ends that follows, space aside; the place itself where none does."""
    rest = text[at:].lstrip()
    begin = len(text) - len(rest)
    found = [one for one in _specials(tokenizer) if one and rest.startswith(one)]
    return begin + len(max(found, key=len)) if found else at


def _specials(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Return the special tokens, those in the templates of chats among them, which need not be declared as such."""
    return {*tokenizer.all_special_tokens, *(str(one) for one in tokenizer.get_added_vocab())}


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    shortest = min(len(one), len(other))
    return next((place for place in range(shortest) if one[place] != other[place]), shortest)
