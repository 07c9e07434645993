"""`--groups` and `--attention`: which kinds of attention are converted, and to how many KV heads each.

-g 4                        self- and cross-attention; an encoder that a decoder reads stays as it is
-g 4 --attention encoder    that kind alone
-g decoder=8,cross=4        each kind its own number
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

PARTS = ("decoder", "cross", "encoder")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a valid integer.") from None


def _part(name: str) -> str:
    part = "decoder" if name == "self" else name
    if part not in PARTS:
        raise typer.BadParameter(f"{name!r} is no kind of attention: self (or decoder), cross, encoder.")
    return part


def read_groups(value: Any) -> int | dict[str, int]:
    """Read a number, `decoder=8,cross=4`, or the same as a mapping from a YAML file."""
    if isinstance(value, Mapping):
        return {_part(name): int(number) for name, number in value.items()}
    text = str(value)
    if "=" not in text:
        return _number(text)
    pairs = [entry.partition("=") for entry in text.split(",")]
    return {_part(name.strip()): _number(number) for name, _, number in pairs}


def read_attention(value: Any) -> tuple[str, ...]:
    """Read `self,cross`, or the same as a list from a YAML file."""
    names: Iterable[str] = value.split(",") if isinstance(value, str) else value
    return tuple(_part(name.strip()) for name in names)


def by_part(groups: Any, attention: tuple[str, ...] | None) -> int | dict[str, int]:
    """Return what both options ask for together."""
    if attention is None:
        return read_groups(groups)
    if not isinstance(groups, int):
        raise typer.BadParameter("--attention does not go with a --groups that names the kinds itself.")
    return dict.fromkeys(attention, groups)


Groups = Annotated[
    Any,
    typer.Option(
        "--groups",
        "-g",
        parser=read_groups,
        metavar="G",
        help="KV heads of the result (1 makes MQA); with decoder=8,cross=4 of each kind of attention.",
    ),
]
Attention = Annotated[
    Any,
    typer.Option(
        parser=read_attention,
        metavar="KINDS",
        help="Kinds of attention to convert: self, cross, encoder; by default self,cross.",
    ),
]
