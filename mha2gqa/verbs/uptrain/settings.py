"""Values for fields of transformers.TrainingArguments, read as what the field takes.

YAML has opinions of its own: `1e-4` is a word to it, `no` and `off` are truth values. Here a value becomes what its
field has: a number where that is a number, `no` where it is a choice of words. What does not fit is refused.
"""

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from mha2gqa.errors import TrainingError

_SPOKEN = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_WITHOUT_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", re.IGNORECASE)
"""Numbers that YAML 1.1 takes for words."""
_ABOVE_ZERO = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "ddp_timeout"),
    *("logging_steps", "eval_steps", "save_steps", "eval_accumulation_steps", "save_total_limit"),
)
_ALSO_TRUTHS = ("fsdp",)
"""Fields of words that take truth values as well, whatever their annotation says."""
_FROM_ZERO = ("dataloader_num_workers", "warmup_steps", "eval_delay", "max_grad_norm", "learning_rate", "weight_decay")


def typed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the types of their fields.

    Args:
        given: Field -> value; the fields exist.

    Raises:
        TrainingError: A value does not fit its field.
    """
    kinds = _kinds()
    settings = {name: _typed(name, value, kinds[name]) for name, value in given.items()}
    for name, value in settings.items():
        least = 0 if name in _FROM_ZERO else 1 if name in _ABOVE_ZERO else -math.inf
        is_share = name.endswith("_steps") and isinstance(value, float) and value > 0  # of all steps
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < least and not is_share:
            raise _unfit(name, value, f"{least} or more")
    return settings


@functools.cache
def _kinds() -> dict[str, tuple[Any, ...]]:
    """Return the types that each field takes."""
    hints = typing.get_type_hints(TrainingArguments)
    return {field.name: _flat(hints[field.name]) for field in dataclasses.fields(TrainingArguments) if field.init}


def _flat(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for one in typing.get_args(hint) for kind in _flat(one))
    return (typing.get_origin(hint) or hint,)


def _typed(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    choices = [
        str(one.value) for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum) for one in kind
    ]
    if choices:
        return _choice(name, value, choices)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, Mapping) and dict in kinds:
        return {key: _plain_number(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and list in kinds:
        return [str(one) for one in value]
    if bool in kinds and str not in kinds:
        return _truth(name, value)
    if float in kinds or int in kinds:
        return _number(name, value, whole=float not in kinds)
    if str in kinds and not isinstance(value, (Mapping, list, tuple, type(None))):
        return _word(name, value, kinds)
    raise _unfit(name, value, " or ".join(_called(kind) for kind in kinds if kind is not type(None)))


def _choice(name: str, value: Any, choices: list[str]) -> str:
    word = {False: "no", True: "yes"}[value] if isinstance(value, bool) else str(value)
    if word not in choices:
        raise _unfit(name, value, f"one of {', '.join(choices)}")
    return word


def _truth(name: str, value: Any) -> bool:
    found = value if isinstance(value, bool) else _SPOKEN.get(str(value).lower())
    if found is None:
        raise _unfit(name, value, "true or false")
    return found


def _number(name: str, value: Any, *, whole: bool) -> int | float:
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _unfit(name, value, wanted)
    try:
        number = _parsed(value) if isinstance(value, str) else value
    except ValueError:
        raise _unfit(name, value, wanted) from None
    if not math.isfinite(number) or (whole and number != int(number)):
        raise _unfit(name, value, wanted)
    return int(number) if whole else number


def _parsed(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _word(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return what a field of words takes for a value; where YAML reads `no`, nothing is meant."""
    if isinstance(value, bool) and bool not in kinds and name not in _ALSO_TRUTHS:
        if value or (type(None) not in kinds and list not in kinds):
            raise _unfit(name, value, "a word")
        return "none" if list in kinds else None
    return value if isinstance(value, bool) else str(value)


def _plain_number(value: Any) -> Any:
    """Return the number that a value in a dictionary stands for, where YAML has left it a word."""
    return float(value) if isinstance(value, str) and _WITHOUT_POINT.fullmatch(value) else value


def _called(kind: Any) -> str:
    return {str: "a word", bool: "true or false", list: "a list", dict: "a mapping"}.get(kind, str(kind))


def _unfit(name: str, value: Any, expected: str) -> TrainingError:
    return TrainingError(
        f"transformers rejects the trainer's settings: {name} is {str(value)[:80]!r}",
        expected=expected,
        remedy="See the documentation of transformers.TrainingArguments",
    )
