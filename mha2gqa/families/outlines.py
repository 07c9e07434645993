"""What transformers expects for configs of common families, without torch: from data that was made by asking.

`outlines.json` (`scripts/make_outlines.py` writes it) says of a model type which keys a config may have and which
values (`tried.py`), what transformers reads of them, and the tensors of its classes: names with loops, shapes as sums
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
from typing import TYPE_CHECKING, Any, ClassVar

from mha2gqa.families.expected import Attention, Blueprint, ConfigJson, Parameter, Shape
from mha2gqa.families.limits import check_counts
from mha2gqa.families.tried import Values, named_class, read_values, with_width

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


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
    values = read_values(config_json, data)
    architecture = named_class(config_json, data)
    if values is None or architecture is None:
        return None
    return Outlined(architecture, data, values, build)


@functools.cache
def _types() -> Mapping[str, Any]:
    """Return the data by model type; none where it was made for another version."""
    content = json.loads(files("mha2gqa.families").joinpath("outlines.json").read_text(encoding="utf-8"))
    return content["types"] if content["transformers"] == version("transformers") else {}


class Settings:
    """A config as transformers reads it; what is not known of it is asked of transformers."""

    sub_configs: ClassVar[Values] = {}
    _getattr_without_heterogeneous_validation = None
    """Layers do not override anything here."""

    def __init__(self, data: Values, values: Values, read: Callable[[], Any]) -> None:
        self.attribute_map: Values = data["aliases"]
        known = {"head_dim": with_width(values)["head_dim"], **values}
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
        self._parameters, self._sizes = [one for one in there if "p" in one[3]], with_width(values)
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
    there = [one for one in tensors if place in one[3]]
    shapes = {id(one): _shape(one, sizes) for one in there}  # once for all layers
    return ((name, shapes[id(one)]) for name, one in _expand(there, sizes))


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
