"""What transformers expects for configs of common families, without torch: from data that was made by asking.

`outlines.json` (`scripts/make_outlines.py` writes it) says of a model type which keys a config may have and which
values (`tried.py`), what transformers reads of them, and the tensors of its classes: names with loops, shapes as sums
of products of sizes (`formulas.py`). It was made by building classes of many configs, holds for that version of
transformers alone, and tests hold it to `built.py` for every family.

Nothing here is a guess: a key or a value that was not tried, another version, another class, and whatever is asked of
a model beyond names and shapes, go to transformers itself. `Settings` hands on what it does not know.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mha2gqa.families.expected import Attention, Blueprint, ConfigJson, Parameter, Shape
from mha2gqa.families.formulas import BASE, evaluate, expand
from mha2gqa.families.limits import check_counts
from mha2gqa.families.tried import Values, named_class, read_values, sized

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
    data = data_of(model_type) if isinstance(model_type, str) else None
    if data is None:
        return None
    check_counts(config_json)
    values = read_values(config_json, data)
    architecture = named_class(config_json, data)
    if values is None or architecture is None:
        return None
    return Outlined(architecture, data, values, build)


def data_of(model_type: str) -> Values | None:
    """Return the data of a model type, if there is any for this version of transformers."""
    line = _types().get(model_type)
    return None if line is None else _parse(line)


@functools.cache
def _parse(line: str) -> Values:
    data: dict[str, Any] = json.loads(line)
    popped = dict.fromkeys(_head()["generation"] if data["pops"] else (), "any")
    return data | {"keys": popped | data["keys"]}


@functools.cache
def _types() -> Mapping[str, str]:
    """Return the data by model type, each a line of JSON; none where it was made for another version."""
    if _head()["transformers"] != version("transformers"):
        return {}
    named = (line.rstrip(",").partition(": ") for line in _lines()[1:-1])
    return {json.loads(name): data for name, _, data in named}


@functools.cache
def _head() -> Values:
    """Return what holds of all types."""
    head: Values = json.loads(f"{_lines()[0]}}}}}")
    return head


@functools.cache
def _lines() -> list[str]:
    return files("mha2gqa.families").joinpath("outlines.json").read_text(encoding="utf-8").splitlines()


class Settings:
    """A config as transformers reads it; what is not known of it is asked of transformers."""

    _getattr_without_heterogeneous_validation = None
    """Layers do not override anything here."""

    def __init__(self, data: Values, values: Values, read: Callable[[], Any]) -> None:
        self.attribute_map: Values = data["aliases"]
        self.sub_configs: Values = dict.fromkeys(data["parts"])
        said = {name for name in data["optional"] if values.get(name) is not None}
        found = {**{name: sized(values, data)[name] for name in data["computed"]}, **values}
        names = {"model_type", *data["defaults"], *data["fixed"], *data["made"], *data["computed"]}
        shown = names - {*data["unread"], *data["optional"], *self.attribute_map} | said
        self.known: Values = {name: value for name, value in found.items() if name in shown}
        """What is known."""
        self._absent, self._read = frozenset([*data["absent"], *data["optional"]]) - said, read

    def get_text_config(self, *, decoder: bool) -> "Settings":
        """Return itself: these families read text alone."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all that is read."""
        whole: dict[str, Any] = self._read().to_dict()
        return whole

    def __getattr__(self, name: str) -> Any:
        key = name if name.startswith("__") else self.attribute_map.get(name, name)
        if name.startswith("__") or key in self._absent:
            raise AttributeError(name)
        return self.known[key] if key in self.known else getattr(self._read(), name)


class Outlined(Blueprint):
    """What the data says of one config; everything else is asked of transformers."""

    def __init__(self, architecture: str, data: Values, values: Values, build: Callable[[], Blueprint]) -> None:
        entry = data["classes"][architecture]
        self.architecture, self.prefix, self.is_base = architecture, entry["prefix"], entry["base"]
        self.final_norm = entry["norm"]
        self._before = "" if self.is_base else f"{self.prefix}."
        self.is_like_llama = entry["like_llama"] and _is_like_llama(values)
        self._asked, self._filed = build, entry["filed"]
        settings: Any = Settings(data, values, lambda: self.config)
        self.settings = settings
        self._sizes = sized(values, data)
        tensors = (data["tensors"][number] for number in entry["tensors"])
        there = [one for one in tensors if all(values[key] == value for key, value in one[4].items())]
        self._parameters = [one for one in there if "p" in one[3]]
        self.shapes = dict(self._shapes(there, "s"))
        self.module_shapes = dict(self._shapes(there, "m"))
        self._numbered = frozenset(self._named(name) for name in data["attention"])

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
        return {name: Parameter(self._shape(one), one[2]) for name, one in self._expand(self._parameters)}

    def attention(self, module: str) -> Attention:
        """Return what a module says of its attention, by its path in the module tree."""
        numbers = [part for part in module.split(".") if part.isdigit()]
        pattern = ".".join("*" if part.isdigit() else part for part in module.split("."))
        return Attention(layer=int(numbers[0]) if pattern in self._numbered else None)

    def filed(self, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Return tensors of the module tree under the names, and in the form, that `save_pretrained` writes."""
        return dict(tensors) if self._filed == {} else self._asked().filed(tensors)

    def filed_names(self) -> Mapping[str, str]:
        """Return the name in such a file of each tensor of the module tree that has one of its own there."""
        if self._filed is None:
            return self._asked().filed_names()
        return {name: self._filed.get(name, name) for name in self.module_shapes}

    def modern(self, names: AbstractSet[str]) -> Mapping[str, str]:
        """Return the names that transformers takes those of former versions for."""
        return self._asked().modern(names)

    def _named(self, name: str) -> str:
        return self._before + name.removeprefix(BASE) if name.startswith(BASE) else name

    def _expand(self, tensors: Iterable[Any]) -> Iterator[tuple[str, Any]]:
        return expand([(self._named(one[0]), one) for one in tensors], self._sizes)

    def _shapes(self, tensors: Iterable[Any], place: str) -> Iterator[tuple[str, Shape]]:
        there = [one for one in tensors if place in one[3]]
        shapes = {id(one): self._shape(one) for one in there}  # once for all layers
        return ((name, shapes[id(one)]) for name, one in self._expand(there))

    def _shape(self, tensor: Any) -> Shape:
        return tuple(evaluate(expression, self._sizes) for expression in tensor[1])


def _is_like_llama(values: Values) -> bool:
    turned = (values.get("rope_parameters") or {}).get("partial_rotary_factor", 1)
    return bool(turned == 1 and values["num_attention_heads"] > 1)
