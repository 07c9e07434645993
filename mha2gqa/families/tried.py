"""What a config may say for the data of `outlines.json` to hold of it: keys and values that were tried.

Everything else is None here, and is asked of transformers. What transformers reads where a config says nothing, or says
it in old keys, is made here as well: sizes in the place of None, kinds of layers, the rotation.
"""

import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from mha2gqa.families.expected import ConfigJson
from mha2gqa.families.formulas import quotient

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


def named_class(config_json: ConfigJson, data: Values) -> str | None:
    """Return the class that a config names, if the data has it."""
    named = config_json.get("architectures") or [data["default"]]
    return named[0] if isinstance(named, list) and named[0] in [*data["classes"]] else None


def read_values(config_json: ConfigJson, data: Values) -> dict[str, Any] | None:
    """Return what transformers reads of a config; None where it says something that was not tried."""
    said = _canonical(config_json, data)
    values = {**data["defaults"], **said}
    domains = {**data["keys"], **COMMON}
    for key, value in sorted(values.items(), key=lambda one: domains.get(one[0]) != "size"):  # the others look at them
        if key not in domains or not _is_tried(key, value, domains[key], values, data):
            return None
    for key, formula in data["filled"].items():
        if values.get(key) is None:
            values[key] = quotient(formula, values)
    if len(said) < len(config_json) or not _is_sound(values, data):
        return None
    equal = {pair: values[key] == values[other] for pair in data["equal"] for key, other in [pair.split("=")]}
    made = _layer_types(values, data) | rope_parameters(values, data)
    return {**values, **data["fixed"], **made, **equal}


def _canonical(config_json: ConfigJson, data: Values) -> ConfigJson:
    """Return a config with the names of its class in the place of others that it reads as well."""
    names: Values = data["spelled"]
    return {names.get(key, key): value for key, value in config_json.items()}


def _is_tried(key: str, value: Any, domain: str, values: Values, data: Values) -> bool:
    if key in data["defaults"] and type(value) is type(data["defaults"][key]) and value == data["defaults"][key]:
        is_free = domain not in ("token", "size") or value is None
        return is_free or (_is_token(value, values, data) if domain == "token" else _DOMAINS[domain](value))
    if domain == "rope":
        return _is_rotary(value)
    if domain == "token":
        return _is_token(value, values, data)
    if domain == "kinds":
        return isinstance(value, list) and len(value) == _layers(values, data) and {*value} <= {*data["kinds"]}
    if domain.startswith("="):
        return type(value) is int and value == values[domain[1:]]
    if domain == "implied":
        return _is_implied(value, values, *data["implied"][key])
    if domain in ("activation", "choice"):
        return isinstance(value, str) and value in (data["choices"].get(key) or data["activations"])
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
    "real": lambda value: _number(value) and value >= 0,
    "decimal": lambda value: type(value) is float and math.isfinite(value) and value >= 0,
    "number": lambda value: _number(value) and value > 0,
    "float": lambda value: type(value) is float and math.isfinite(value) and value > 0,
    "id": lambda value: value is None or type(value) is int,
    "ids": lambda value: value is None or all(type(one) is int for one in (value if type(value) is list else [value])),
    "index": lambda value: type(value) is int,
    "numbers": lambda value: value is None or (type(value) is list and all(type(one) is int for one in value)),
    "text": lambda value: isinstance(value, str),
    "dtype": lambda value: value in ("float32", "bfloat16", "float16"),
    "names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "any": lambda value: True,
    "labels": lambda value: isinstance(value, dict) and 0 < len(value) <= _MOST and all(key.isdigit() for key in value),
    "map": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
}
"""Name in the data -> what a value may be. Those that depend on other values are in `_is_tried`."""
COMMON = {
    **dict.fromkeys(("model_type", "transformers_version", "_name_or_path"), "text"),
    **dict.fromkeys(("dtype", "torch_dtype"), "dtype"),
    "architectures": "names",
    "auto_map": "map",
    "use_cache": "switch",
}
"""What every config may say."""


def _is_implied(value: Any, values: Values, choice: str, implied: Values) -> bool:
    """Return whether a config says of a choice what follows of it."""
    known = implied.get(values[choice]) if isinstance(values[choice], str) else None
    return known is not None and type(value) is type(known) and bool(value == known)


def _is_token(value: Any, values: Values, data: Values) -> bool:
    rows = [values[key] for key in data["padded"]]  # of the tables that have one for padding
    return value is None or (type(value) is int and 0 <= value < min(rows, default=0))


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
    sizes = sized(values, data)
    if any(sizes[key] is None for key in (*data["sizes"], "head_dim")):
        return False
    return not any(sizes[whole] % sizes[part] for whole, part in data["divides"]) and sizes["head_dim"] % 2 == 0


def sized(values: Values, data: Values) -> dict[str, Any]:
    """Return the sizes: that of a head also where a config does not say it, and what a class takes for None."""
    names: Values = data["aliases"]
    hidden, heads, width = (
        values.get(names.get(key, key)) for key in ("hidden_size", "num_attention_heads", "head_dim")
    )
    taken = {key: quotient(formula, values) for key, formula in data["taken"].items() if values.get(key) is None}
    whole = hidden // heads if hidden and heads else None
    return {**values, **taken, "head_dim": width or whole, "num_labels": len(values.get("id2label") or "__")}


def _layers(values: Values, data: Values) -> Any:
    return values[data["aliases"].get("num_hidden_layers", "num_hidden_layers")]


def _layer_types(values: Values, data: Values) -> dict[str, Any]:
    """Return the kinds of layers that a class takes where a config names none."""
    if data["cycle"] is None or values.get("layer_types") is not None:
        return {}
    cycle = data["cycle"]
    return {"layer_types": [cycle[layer % len(cycle)] for layer in range(_layers(values, data))]}


def rope_parameters(values: Values, data: Values) -> dict[str, Any]:
    """Return how a class reads what a config says of its rotation in old and in new keys."""
    if data["theta"] is None:
        return {}
    said = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
    theta, turning = data["rotation"]  # what the class calls them
    said.setdefault("rope_theta", values.get(theta, data["theta"]))
    if (turned := values.get(turning, data["turned"])) is not None:
        said.setdefault("partial_rotary_factor", turned)
    said.setdefault("rope_type", said.get("type", "default"))
    return {"rope_parameters": said}
