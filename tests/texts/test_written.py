"""What a model writes itself: the turns of a chat stand where its template puts them."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mha2gqa.texts.written import Template, _Turn, sample_text
from tests.families.tiny import tiny_config, tiny_model

TEMPLATE = (
    "{% for m in messages %}<b>{{ m.role }} : {{ m.content }} <e>{% endfor %}"
    "{% if add_generation_prompt %}<b>assistant : {% endif %}"
)


def chats(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    words = ["<b>", "<e>", "user", "assistant", ":", "?", *map(str, range(20))]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, words[5]))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(zip(("bos_token", "eos_token", "unk_token"), (words[0], words[1], words[5]), strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=template, **special)


def test_a_template_is_taken_apart() -> None:
    found = Template.of(chats())
    assert found == Template((0, 2, 4), ((1, 0, 3, 4), (1, 0, 2, 4)), frozenset({1}))


def test_templates_that_say_no_question_or_refuse_are_none() -> None:
    assert Template.of(chats("{{ messages[0].role }}")) is None
    assert Template.of(chats("{{ raise_exception('no') }}")) is None


def test_a_turn_ends_by_its_token_or_when_a_question_is_long() -> None:
    template = Template((0, 2, 4), ((1, 0, 3, 4), (1, 0, 2, 4)), frozenset({1}))
    turn, last, free = _Turn(), 4, 0
    for _ in range(500):
        forced = turn.next(last, template)
        if forced is not None and turn.answers:
            break
        last, free = 9, free + 1
    assert free == 96 and [forced, *turn.forced] == [1, 0, 3, 4], "the whole of what ends a question is written for it"
    while turn.forced:
        turn.next(0, template)
    assert turn.next(4, template) is None
    assert turn.next(1, template) == 0 and turn.forced == [2, 4], "the answer has ended itself"


def test_half_of_what_a_chat_model_writes_are_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mha2gqa.texts.written._QUESTION", 3)
    model, told = tiny_model(tiny_config("llama")), []
    blocks = sample_text(
        model, chats(), tokens=96, context=24, seed=0, advance=lambda done, total: told.append((done, total))
    )
    assert blocks.shape == (4, 24)
    assert (blocks[:, 0] == 0).all() and (blocks[2:, :3] == torch.tensor([0, 2, 4])).all()
    for chat in blocks[2:].tolist():
        at = next(place for place in range(3, 24) if chat[place : place + 4] == [1, 0, 3, 4])
        assert at <= 6, "the question is at most as long as it may be"
    assert sum(done for done, _ in told) == 96 and {total for _, total in told} == {96}
