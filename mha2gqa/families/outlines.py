"""What transformers expects for configs of common families, without torch: from data that was made by asking.

`outlines.json` (`scripts/make_outlines.py` writes it) says of a model type which keys a config may have and which
values (`_DOMAINS`), what transformers reads of them, and the tensors of its classes: names with loops, shapes as sums
of products of sizes. It was made by building classes of many configs, holds for that version of transformers alone, and
tests hold it to `built.py` for every family.

Nothing here is a guess: a key or a value that was not tried, another version, another class, and whatever is asked of
a model beyond names and shapes, go to transformers itself. `Settings` hands on what it does not know.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from mha2gqa.families.expected import Attention, Blueprint, ConfigJson, Parameter, Shape
from mha2gqa.families.limits import check_counts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Values: TypeAlias = Mapping[str, Any]

_MOST = 1 << 22
"""Sizes above this are left to transformers."""
_SCALED: Mapping[str, AbstractSet[str]] = {
    "default": frozenset(),
    "linear": frozenset(["factor"]),
    "llama3": frozenset(["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
}
"""Kind of rotary embedding -> what it must say besides."""
_ROTARY = frozenset(["rope_type", "type", "rope_theta", "partial_rotary_factor"])


def outlined(config_json: ConfigJson, build: Callable[[], Blueprint]) -> Blueprint | None:
    """Return the blueprint of a config that the data covers; None where transformers has to be asked.

    Args:
        config_json: The config.
        build: Asks transformers, for what the data does not say.

    Raises:
        CheckpointError: A number of layers, heads or the like is absurd.
    """
    model_type = config_json.get("model_type")
    data = _types().get(model_type) if isinstance(model_type, str) else None
    if data is None:
        return None
    check_counts(config_json)
    values = _values(config_json, data)
    architecture = _architecture(config_json, data)
    if values is None or architecture is None:
        return None
    return Outlined(architecture, data, values, build)


@functools.cache
def _types() -> Mapping[str, Any]:
    """Return the data by model type; none where it was made for another version."""
    content = json.loads(files("mha2gqa.families").joinpath("outlines.json").read_text(encoding="utf-8"))
    return content["types"] if content["transformers"] == version("transformers") else {}


def _architecture(config_json: ConfigJson, data: Values) -> str | None:
    named = config_json.get("architectures") or [data["default"]]
    return named[0] if isinstance(named, list) and named[0] in [*data["classes"]] else None


def _values(config_json: ConfigJson, data: Values) -> dict[str, Any] | None:
    """Return what transformers reads of a config; None where it says something that was not tried."""
    values = {**data["defaults"], **config_json}
    for key, name in data["filled"].items():
        if values.get(key) is None:
            values[key] = _filled(values, name)
    domains = {**data["keys"], **_COMMON}
    for key, value in values.items():
        if key not in domains or not _is_tried(key, value, domains[key], values, data):
            return None
    if not _is_sound(values, data):
        return None
    made = _layer_types(values, data) | _rope_parameters(values, data)
    return {**values, **data["fixed"], **made}


def _filled(values: Values, name: str) -> int | None:
    """Return what a class takes in the place of None: another size, or the quotient of two."""
    found = [values.get(part) for part in name.split("//")]
    sizes = [one for one in found if type(one) is int and one > 0]
    return functools.reduce(int.__floordiv__, sizes) if len(sizes) == len(found) else None


def _is_tried(key: str, value: Any, domain: Any, values: Values, data: Values) -> bool:
    if key in data["defaults"] and type(value) is type(data["defaults"][key]) and value == data["defaults"][key]:
        return domain != "token" or _is_token(value, values)
    if domain == "rope":
        return _is_rotary(value)
    if domain == "token":
        return _is_token(value, values)
    if domain == "kinds":
        return isinstance(value, list) and len(value) == values["num_hidden_layers"] and {*value} <= {*data["kinds"]}
    if domain == "activation":
        return value in data["activations"]
    check = _DOMAINS.get(domain)
    return check is not None and check(value)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_DOMAINS: Mapping[str, Callable[[Any], bool]] = {
    "size": lambda value: type(value) is int and 1 <= value <= _MOST,
    "size?": lambda value: value is None or (type(value) is int and 1 <= value <= _MOST),
    "switch": lambda value: type(value) is bool,
    "share": lambda value: _number(value) and 0 <= value <= 1,
    "part": lambda value: type(value) is float and 0 <= value <= 1,
    "number": lambda value: _number(value) and value > 0,
    "float": lambda value: type(value) is float and math.isfinite(value) and value > 0,
    "id": lambda value: value is None or type(value) is int,
    "ids": lambda value: value is None or all(type(one) is int for one in (value if type(value) is list else [value])),
    "text": lambda value: isinstance(value, str),
    "dtype": lambda value: value in ("float32", "bfloat16", "float16"),
    "names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "map": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
}
"""Name in the data -> what a value may be. Those that depend on other values are in `_is_tried`."""
_COMMON = {
    **dict.fromkeys(("model_type", "transformers_version", "_name_or_path"), "text"),
    **dict.fromkeys(("dtype", "torch_dtype"), "dtype"),
    "architectures": "names",
    "auto_map": "map",
    "use_cache": "switch",
}
"""What every config may say."""


def _is_token(value: Any, values: Values) -> bool:
    return value is None or (type(value) is int and 0 <= value < values["vocab_size"])


def _is_rotary(value: Any) -> bool:
    """Return whether a config says its rotation in one of the forms that were tried."""
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    named = [value[key] for key in ("rope_type", "type") if key in value]
    if not all(isinstance(kind, str) and kind in _SCALED for kind in named) or len(kinds := {*named}) > 1:
        return False
    more = _SCALED[next(iter(kinds), "default")]
    numbers = [one for key, one in value.items() if key not in ("rope_type", "type")]
    is_whole = more <= value.keys() <= more | _ROTARY and all(_number(one) and one > 0 for one in numbers)
    is_growing = value.get("low_freq_factor", 1) < value.get("high_freq_factor", 4) and value.get("factor", 1) >= 1
    return is_whole and is_growing and value.get("partial_rotary_factor", 1) <= 1


def _is_sound(values: Values, data: Values) -> bool:
    """Return whether sizes are there, and heads divide what they must; of others transformers has its own to say."""
    if any(values[key] is None for key in data["sizes"] if key != "head_dim"):
        return False
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    width = _sizes(values)["head_dim"]
    return not any((values["hidden_size"] % heads, heads % kv_heads, width % 2))


def _sizes(values: Values) -> Values:
    """Return the sizes, that of a head also where a config does not say it."""
    return {**values, "head_dim": values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]}


def _layer_types(values: Values, data: Values) -> dict[str, Any]:
    """Return the kinds of layers that a class takes where a config names none."""
    if data["cycle"] is None or values.get("layer_types") is not None:
        return {}
    cycle = data["cycle"]
    return {"layer_types": [cycle[layer % len(cycle)] for layer in range(values["num_hidden_layers"])]}


def _rope_parameters(values: Values, data: Values) -> dict[str, Any]:
    """Return how a class reads what a config says of its rotation in old and in new keys."""
    if data["theta"] is None:
        return {}
    said = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    said.setdefault("rope_theta", values.get("rope_theta", data["theta"]))
    if (turned := values.get("partial_rotary_factor", data["turned"])) is not None:
        said.setdefault("partial_rotary_factor", turned)
    said.setdefault("rope_type", said.get("type", "default"))
    return {"rope_parameters": said}


class Settings:
    """A config as transformers reads it; what is not known of it is asked of transformers."""

    sub_configs: ClassVar[Values] = {}
    _getattr_without_heterogeneous_validation = None
    """Layers do not override anything here."""

    def __init__(self, data: Values, values: Values, read: Callable[[], Any]) -> None:
        self.attribute_map: Values = data["aliases"]
        known = {"head_dim": _sizes(values)["head_dim"], **values}
        said = [name for name in data["optional"] if values.get(name) is not None]
        self._known = {name: known[name] for name in (*data["known"], *said) if name in known}
        self._absent, self._read = frozenset([*data["absent"], *data["optional"]]) - {*said}, read

    def get_text_config(self, *, decoder: bool) -> "Settings":
        """Return itself: these families read text alone."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return what is known."""
        return self._known

    def __getattr__(self, name: str) -> Any:
        key = name if name.startswith("_") else self.attribute_map.get(name, name)
        if name.startswith("__") or key in self._absent:
            raise AttributeError(name)
        return self._known[key] if key in self._known else getattr(self._read(), name)


class Outlined(Blueprint):
    """What the data says of one config; everything else is asked of transformers."""

    def __init__(self, architecture: str, data: Values, values: Values, build: Callable[[], Blueprint]) -> None:
        entry, whole = data["classes"][architecture], data["classes"][data["default"]]
        tensors, attention = based(whole) if entry["tensors"] is None else (entry["tensors"], entry["attention"])
        self.architecture, self.prefix, self.is_base = architecture, entry["prefix"], entry["base"]
        self.final_norm = entry["norm"]
        turned = (values.get("rope_parameters") or {}).get("partial_rotary_factor", 1)
        self.is_like_llama = entry["like_llama"] and turned == 1 and values["num_attention_heads"] > 1
        self._asked = build
        settings: Any = Settings(data, values, lambda: self.config)
        self.settings = settings
        there = [one for one in tensors if all(values[key] == value for key, value in one[4].items())]
        self._parameters, self._sizes = [one for one in there if "p" in one[3]], _sizes(values)
        self.shapes = dict(_shapes(there, self._sizes, "s"))
        self.module_shapes = dict(_shapes(there, self._sizes, "m"))
        self._numbered = frozenset(attention)

    @property
    def config(self) -> "PreTrainedConfig":
        """The config as transformers reads it."""
        return self._asked().config

    @property
    def model(self) -> "PreTrainedModel":
        """The model on the meta device: modules and shapes, no memory."""
        return self._asked().model

    @functools.cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Name in the module tree -> what is trained; what is tied counts once."""
        return {
            name: Parameter(_shape(one, self._sizes), one[2]) for name, one in _expand(self._parameters, self._sizes)
        }

    def attention(self, module: str) -> Attention:
        """Return what a module says of its attention, by its path in the module tree."""
        numbers = [part for part in module.split(".") if part.isdigit()]
        pattern = ".".join("*" if part.isdigit() else part for part in module.split("."))
        return Attention(layer=int(numbers[0]) if pattern in self._numbered else None)

    def filed(self, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Return tensors of the module tree under the names, and in the form, that `save_pretrained` writes."""
        return self._asked().filed(tensors)

    def modern(self, names: AbstractSet[str]) -> Mapping[str, str]:
        """Return the names that transformers takes those of former versions for."""
        return self._asked().modern(names)


def based(whole: Values) -> tuple[list[Any], list[str]]:
    """Return the tensors of the base model of a class, and the modules that know their layer."""
    prefix = f"{whole['prefix']}."
    tensors = [[one[0].removeprefix(prefix), *one[1:]] for one in whole["tensors"] if one[0].startswith(prefix)]
    return tensors, [name.removeprefix(prefix) for name in whole["attention"] if name.startswith(prefix)]


def _shapes(tensors: Iterable[Any], sizes: Values, place: str) -> Iterator[tuple[str, Shape]]:
    return ((name, _shape(one, sizes)) for name, one in _expand((one for one in tensors if place in one[3]), sizes))


def _shape(tensor: Any, sizes: Values) -> Shape:
    return tuple(evaluate(expression, sizes) for expression in tensor[1])


def evaluate(expression: str, sizes: Values) -> int:
    """Return the number of a sum of products of sizes: `2*intermediate_size`."""
    return sum(
        math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in term.split("*"))
        for term in expression.split("+")
    )


def _expand(tensors: Iterable[Any], sizes: Values) -> Iterator[tuple[str, Any]]:
    """Yield the names of tensors, those of a layer together, in the order of the module tree.

    Their names have the size that counts a loop in braces: `layers.{num_hidden_layers}.norm.weight`.
    """
    return _loop([(tuple(re.split("[{}]", one[0])), one) for one in tensors], sizes, "")


def _loop(named: list[tuple[tuple[str, ...], Any]], sizes: Values, before: str) -> Iterator[tuple[str, Any]]:
    for loop, group in groupby(named, lambda one: one[0][:-1][:2]):
        if not loop:
            yield from ((before + parts[0], one) for parts, one in group)
            continue
        text, count = loop
        inner = [(parts[2:], one) for parts, one in group]
        for number in range(evaluate(count, sizes)):
            yield from _loop(inner, sizes, f"{before}{text}{number}")
