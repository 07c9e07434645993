"""Tokenizers of characters with chat templates of the usual kinds."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBE KIND<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.first and tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{{ m.content }}{% if m.tool_calls %}CALL {{ m.tool_calls[0].function | tojson }}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
TELLS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|start|>a "
    "{% generation %} {{ m.content }}<|eot|>{% endgeneration %}\n{% else %}<|start|>{{ m.role }} {{ m.content }}<|eot|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>a {% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Thoughts are in the last answer alone, as with Qwen3."""
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
"""It knows no opening of an answer."""
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>")


def character_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Each printable character is a token, as are the marks of templates."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\n": 3} | {chr(code): code - 28 for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in ("<s>", "</s>", *SPECIALS)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106
    made.chat_template = template
    return made


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    """Write rows as lines of JSON; return the path as a value of `--data`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def turns(*said: str) -> list[dict[str, str]]:
    """Turns of a user and an assistant, one after the other."""
    return [{"role": ("user", "assistant")[number % 2], "content": one} for number, one in enumerate(said)]
