"""What an option is. It is said once, as a field of its verb's dataclass, for Python, YAML files and the command line.

    steps: Annotated[int, Option("Training steps.", least=1)] = 300                a field
    attention: InitVar[Annotated[Kinds | None, Option(...)]] = None                taken up by the other fields
    as_json: ClassVar[Annotated[bool, Option(..., flags=("--json",))]] = False     the command line's alone

Name, type and default are the field's, the rest is `Option`'s, and the docstring below the field is for Python. All
three ways make the same object, and `Options` reads and checks every value of it. So a parser takes what a person has
written, what YAML makes of that, and a value that is right already. The first sentence of the dataclass is the help of
its verb.

Nothing here knows a verb, or the command line; `cli.py` makes it of these.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from mha2gqa.errors import OptionError
from mha2gqa.units import parse_count, parse_share

Parser = Callable[[Any], Any]
"""Raises ValueError with what is wrong with the value, or OptionError with a message that names the option itself."""


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name, type and default."""

    help: str
    """Its sentence on the command line."""
    parse: Parser | None = None
    """What reads it; without one its type says enough. Gets all values of a repeatable option together."""
    metavar: str | None = None
    """What stands for its value in the help; without one its type, or its choices."""
    flags: tuple[str, ...] = ()
    """How it is written; empty is `--` and its name."""
    least: float | None = None
    most: float | None = None
    is_argument: bool = False
    """Whether it is known by its place, and not by its name."""
    is_repeatable: bool = False
    """Whether it may be given several times; a mapping then takes KEY=VALUE."""


class Defaults(Option):
    """Names a YAML file with values for the other options."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An option with the name, type and default that it has in a verb."""

    name: str
    hint: Any
    """Its type."""
    default: Any
    """MISSING where it is required."""
    option: Option
    is_field: bool
    """Whether it makes the options; else it is the command line's alone."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The only texts that it may be, by its type; empty where a parser decides, or others may be."""
        return () if self.option.parse else _literals(self.hint)

    @property
    def metavar(self) -> str | None:
        """What stands for its value in the help; None is its type."""
        return self.option.metavar or "|".join(self.choices) or None

    @property
    def is_sequence(self) -> bool:
        """Whether it is any number of values."""
        return get_origin(self.hint) is tuple

    @property
    def is_mapping(self) -> bool:
        """Whether it is keys and values."""
        return get_origin(self.hint) is Mapping

    def read(self, value: Any) -> Any:
        """Return the value that was meant.

        Raises:
            ValueError: The value cannot be.
            OptionError: The same, in a message that names the option.
        """
        if value is None:
            return None
        if self.option.parse is not None:
            return self.option.parse(value)
        if self.is_sequence:
            is_one = isinstance(value, str | PathLike) or not isinstance(value, Iterable)
            return tuple(map(self.read_one, [value] if is_one else value))
        return self.read_one(value)

    def read_one(self, value: Any) -> Any:
        """Return one value of those that a type without a parser allows."""
        least, most = self.option.least, self.option.most
        if self.choices:
            return one_of(self.choices)(value)
        value = _typed(value, _types(self.hint))
        if (least, most) != (None, None) and value != value:  # NaN, which passes every comparison below
            raise ValueError(f"{value} is not a number")
        if least is not None and value < least:
            raise ValueError(f"{value} is less than {least:g}")
        if most is not None and value > most:
            raise ValueError(f"{value} is more than {most:g}")
        return value


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be asked of a verb. Every value is read and checked, whoever gave it.

    Raises:
        OptionError: A value cannot be.
    """

    def __post_init__(self) -> None:
        known = parameters(type(self))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, read(known[field.name], getattr(self, field.name)))


def read(parameter: Parameter, value: Any) -> Any:
    """Return the value that was meant.

    Raises:
        OptionError: The value cannot be.
    """
    try:
        return parameter.read(value)
    except ValueError as error:
        raise OptionError(f"{parameter.name}: {error}") from None


def parameters(options: type[Options]) -> dict[str, Parameter]:
    """Return the options of a verb by name, in the order in which they are written down."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    hints = get_type_hints(options, include_extras=True)
    return {name: _parameter(options, name, hint, fields.get(name)) for name, hint in hints.items()}


def _parameter(options: type[Options], name: str, hint: Any, field: dataclasses.Field[Any] | None) -> Parameter:
    is_field = get_origin(hint) is not ClassVar
    if isinstance(hint, dataclasses.InitVar):
        hint = hint.type
    elif not is_field:
        (hint,) = get_args(hint)
    kind, option = get_args(hint)
    default = getattr(options, name, MISSING)
    if field is not None and field.default_factory is not MISSING:
        default = field.default_factory()
    return Parameter(name=name, hint=kind, default=default, option=option, is_field=is_field)


_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _types(hint: Any) -> set[Any]:
    """Return which of `_TYPES` a hint is made of."""
    return {hint} & _TYPES.keys() | {kind for part in get_args(hint) for kind in _types(part)}


def _typed(value: Any, types: set[Any]) -> Any:
    """Return a value in one of some types: a path may be given as a text, and a text as a path or a number."""
    if isinstance(value, bool) and bool in types:
        return value
    if isinstance(value, str | PathLike) and types & {str, Path}:
        return Path(value) if Path in types else str(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral) and int in types:
            return int(value)
        if types & {float, str}:
            return float(value) if float in types else str(value)
    raise ValueError(f"{value!r} is not {' or '.join(text for kind, text in _TYPES.items() if kind in types)}")


def _literals(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(name for part in get_args(hint) for name in _literals(part))


def one_of(names: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[Any], str]:
    """Return a parser of one of `names`; of a function where names can be added."""

    def parse(value: Any) -> str:
        known = tuple(names() if callable(names) else names)
        if value not in known:
            raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        return str(value)

    return parse


def at_least(least: int, most: int = 1 << 31) -> Callable[[Any], int]:
    """Return a parser of a whole number, also with a suffix: `256K`; what is counted so lies in memory."""

    def parse(value: Any) -> int:
        count = parse_count(str(value))
        if count < least:
            raise ValueError(f"{value} is less than {least}")
        if count > most:
            raise ValueError(f"{value} is more than {most:,}")
        return count

    return parse


def share(most: float = math.inf) -> Callable[[Any], float]:
    """Return a parser of a share from 0 on, also in per cent: `1%`."""

    def parse(value: Any) -> float:
        try:
            number = parse_share(str(value))
        except ValueError:
            raise ValueError(f"{value!r} is no number or percentage, such as 0.01 or 1%") from None
        if not 0 <= number <= most:
            hint = f"; {number:g} per cent is written {number:g}%" if most < number <= 100 else ""
            raise ValueError(f"{value} is not from 0 to {most:g}{hint}" if most < math.inf else f"{value} is below 0")
        return number

    return parse


def listed(value: Any) -> tuple[Any, ...]:
    """Return the parts of a text that are separated by commas; or the values of a sequence, or one value."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, Iterable) else (value,)


def listed_names(value: Any) -> tuple[str, ...]:
    """Return the names that are separated by commas, or in a sequence."""
    return tuple(_typed(one, {str}) for one in listed(value))


def written(value: Any) -> Any:
    """Return a value as `listed` reads it again; None for nothing, which nobody writes."""
    if not isinstance(value, tuple):
        return value
    return ",".join("none" if one is None else str(one) for one in value) or None
