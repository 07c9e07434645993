"""Readers of the options of `convert`: of what people write, what YAML makes of it, and a value that is right."""

from collections.abc import Mapping
from typing import Any

from mha2gqa.methods import AUTO, METHODS
from mha2gqa.options import listed
from mha2gqa.units import parse_count

_PARTS = ("decoder", "cross", "encoder")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a valid integer.") from None


def _part(name: Any) -> str:
    part = "decoder" if name == "self" else name
    if part not in _PARTS:
        raise ValueError(f"{name!r} is no kind of attention: self (or decoder), cross, encoder.")
    return part


def read_groups(value: Any) -> int | dict[str, int] | tuple[int, ...] | str:
    """Read a number, `decoder=8,cross=4`, `2,2,4,8` for each layer, `auto`, or the same as a mapping or a sequence."""
    if isinstance(value, list | tuple):
        return tuple(_number(str(number)) for number in value)
    if isinstance(value, Mapping):
        return {_part(name): _number(str(number)) for name, number in value.items()}
    text = str(value)
    if text == AUTO:
        return text
    if "=" not in text:
        return tuple(map(_number, text.split(","))) if "," in text else _number(text)
    pairs = [entry.partition("=") for entry in text.split(",")]
    return {_part(name.strip()): _number(number) for name, _, number in pairs}


def read_attention(value: Any) -> tuple[str, ...]:
    """Read `self,cross`, or the same as a sequence."""
    return tuple(map(_part, listed(value)))


def read_window(value: Any) -> int:
    """Read W; below 2, transformers' cache would keep everything (a slice from -0 on)."""
    number = parse_count(str(value))
    if number < 2:
        raise ValueError(f"{value} is below 2: the cache of a window keeps the W - 1 tokens before the newest.")
    return number


def read_layers(value: Any) -> str:
    """Read `auto`, or `0-11,14` or a sequence of numbers, which are written in their shortest form."""
    if value == AUTO:
        return AUTO
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    from mha2gqa.targets.window import parse_layers, write_layers

    return write_layers(parse_layers(str(value)))


def recorded_groups(groups: int | Mapping[str, int] | tuple[int, ...] | str) -> object:
    """Return KV heads as the record keeps them, and `read_groups` reads them again."""
    if isinstance(groups, Mapping):
        return dict(groups)
    return ",".join(map(str, groups)) if isinstance(groups, tuple) else groups


def known_methods() -> tuple[str, ...]:
    """Return the methods that can be asked for, those that a program has added included."""
    return (*METHODS, AUTO)
