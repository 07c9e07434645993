"""Refuses a config that asks for a model of absurd size, by the usual names of such numbers, before it is built.

Each layer of a model is Python objects, also where its tensors take no memory: a config of a few bytes could ask for
more of them than this machine has, or hours to make them.
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
