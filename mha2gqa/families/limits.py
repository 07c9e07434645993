"""What of a config is refused before its model is built: absurd numbers, and types whose code is elsewhere.

Each layer of a model is Python objects, also where its tensors take no memory: a config of a few bytes could ask for
more of them than this machine has, or hours to make them. Another type in a config would not help where its code ships
with the checkpoint: the tensors have other names, or mean something else; what can be done is said, where it is known.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mha2gqa.errors import CheckpointError

_LIMITS = {
    re.compile(r"(.*_)?(layers?|depths?|blocks?|stages?)"): 512,
    re.compile(r"(.*_)?(experts?|heads?|codebooks?|quantizers?|adapters?)"): 8192,
    re.compile(r"num_labels"): 1 << 20,
}
"""Keys, and what they may say: four times what anybody has published."""

_FALCON = "It is what transformers calls falcon: take a revision with that model type, or tiiuae/falcon"
_LLAMA = "Its weights can be written as a llama model, and that converted: "

REMEDIES = {
    "RefinedWeb": f"{_FALCON}-40b",
    "RefinedWebModel": f"{_FALCON}-7b",
    "qwen": f"{_LLAMA}LLaMA-Factory has scripts/convert_ckpt/llamafy_qwen.py for the first Qwen",
    "baichuan": f"{_LLAMA}LLaMA-Factory has scripts/convert_ckpt/llamafy_baichuan2.py for Baichuan 2",
    "internlm": f"{_LLAMA}it differs from it in the biases of its attention alone",
    "internlm2": f"{_LLAMA}InternLM has tools/convert2llama.py",
    "chatglm": "Take its authors' version for the type glm or glm4, whose names end in -hf",
}
"""Model type -> remedy."""

SHIPPED = "Take its authors' version for a type that transformers has, or convert it to one"
"""Remedy for any other type with code of its own."""


def check_counts(config: Mapping[str, Any]) -> None:
    """Refuse numbers of layers, heads, experts and the like that no model has.

    Raises:
        CheckpointError: One is too large.
    """
    for key, number in _counts(config):
        for pattern, most in _LIMITS.items():
            if pattern.fullmatch(key) and number > most:
                raise CheckpointError(
                    f"config.json says {key}: {number}"[:100],
                    expected=f"at most {most:,}",
                    remedy="Check the config: no model that was published has as many",
                )


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
            continue
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield key, number
