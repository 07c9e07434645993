"""Finds what the keys of a model type may say."""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from outline_answers import ABSENT, class_names, facts, plain, read, read_config, same
from outline_points import (
    ACTIVATION_KEYS,
    ACTIVATIONS,
    CHOICES,
    COUNTS,
    GENERAL,
    IMPLIED,
    KINDS,
    LABELS,
    NAMED,
    PAIRS,
    READ,
    ROPES,
    ROTARY,
    ROTATIONS,
    SIZES,
    SPELLED,
    TRIED,
    TWINS,
    UNREAD,
)
from outline_tensors import Config, UnfitError
from transformers import CONFIG_MAPPING, GenerationConfig

from mha2gqa import shipped
from mha2gqa.errors import Mha2GqaError
from mha2gqa.families import tried
from mha2gqa.families.built import Asked, build
from mha2gqa.families.table import family

_MOST_SWITCHES = 5
WINDOWED: Config = {"use_sliding_window": True, "sliding_window": 64}
"""A switch that does something beside another key alone."""
GENERATION = sorted(GenerationConfig._get_default_generation_params())
"""Keys that no config keeps, unless its class names them."""


class Keys:
    """The keys of a model type."""

    def __init__(self, model_type: str, *, has_width: bool) -> None:
        shipped.register(model_type)
        self.model_type = model_type
        self.class_ = CONFIG_MAPPING[model_type]
        own = {field.name: field for field in dataclasses.fields(self.class_)}
        general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
        self.fields = {name: _default(field) for name, field in own.items() if name not in general}
        self.general = {name: _default(own[name]) for name in GENERAL}
        self.aliases: dict[str, str] = dict(self.class_.attribute_map)
        if self.class_.sub_configs_defaults:
            raise UnfitError("it has parts with configs of their own")
        needed = {self.aliases.get(key, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
        if not needed <= self.fields.keys():
            raise UnfitError(f"its config has other keys than {', '.join(sorted(needed - self.fields.keys()))}")
        if has_width and "head_dim" not in self.fields and _mentions(self.class_, "head_dim"):
            self.fields["head_dim"] = None  # read where a config has it
        self.names = list(class_names(model_type))
        if not self.names:
            raise UnfitError("it has no class of its own")
        self.default = self.names[0]
        self.has_labels = any("Classification" in name for name in self.names)
        self.sizes = [name for name in SIZES if name in self.fields and self.fields[name] is not False]
        self.equal: list[str] = []
        self.keys: dict[str, str] = {}
        self.kinds: list[str] = []
        self.activations: list[str] = []
        self.choices: dict[str, list[str]] = {}
        self.spelled: dict[str, str] = {}
        self.pops = False
        self.moved: set[str] = set()
        """What is read otherwise with one KV head."""
        self.implied: dict[str, tuple[str, Config]] = {}
        self.rotation: tuple[str, str] = ROTATIONS[0]
        self.plain = functools.cache(lambda name: self.ask(0, architectures=[name]))
        """What transformers says at the first point."""
        self._settle_sizes()

    def _settle_sizes(self) -> None:
        """Leave those numbers alone that no tensor depends on."""
        asked = {name: one for name in self.names if (one := self._taken(name)) is not None}
        if not asked:
            raise UnfitError("its sizes cannot be chosen freely")
        self.main = max(asked, key=lambda name: len(asked[name].module_shapes))
        answers = {name: [read(one.config, key) for key in READ] for name, one in asked.items()}
        self.names = [name for name in asked if answers[name] == answers[self.main]]  # some rewrite their config
        for name in [one for one in self.sizes if not one.endswith(("heads", "head", "head_dim"))]:
            if self.same(*self.names, **{name: SIZES[name][1]}):
                self.sizes.remove(name)
                self.plain.cache_clear()
        self.equal = [f"{one}={other}" for one, other in PAIRS if {one, other} <= {*self.sizes}]

    def _taken(self, name: str) -> Asked | None:
        """Return what a class says at the first point; None where it does not take it."""
        try:
            return self.plain(name)
        except Mha2GqaError:
            return None

    def config(self, point: int, **more: Any) -> Config:
        """Return a config at a point."""
        sizes = {name: SIZES[name][point] for name in self.sizes}
        widths = {self.aliases.get("head_dim", "head_dim"), "d_kv"}
        if not widths & self.fields.keys():
            heads = SIZES[self.aliases.get("num_attention_heads", "num_attention_heads")]
            sizes[self.aliases.get("hidden_size", "hidden_size")] = heads[point] * SIZES["head_dim"][point]
        elif "d_kv" in widths & self.fields.keys():
            sizes["d_model"] += 2  # heads do not have to divide it
        if {"decoder_key_value_heads", "decoder_attention_heads"} <= {*self.sizes}:
            sizes["decoder_attention_heads"] = sizes["encoder_attention_heads"]  # one width for all heads
        for pair in self.equal:
            one, other = pair.split("=")
            sizes |= {one: sizes[other]} if more.pop(pair, False) else {}
        labels = {"id2label": {str(one): "x" for one in range(LABELS[point])}} if self.has_labels else {}
        tokens = {name: 1 for name in self.fields if name.endswith("_token_id")}
        named = {"model_type": self.model_type, "architectures": self.names[:1]}
        return named | sizes | tokens | labels | more

    def sizes_at(self, point: int, **more: Any) -> dict[str, int]:
        """Return the sizes by which tensors are fitted."""
        config = self.config(point, **more)
        values = tried.sized({**self.fields, **config}, {"aliases": self.aliases, "taken": {}})
        names = [*self.sizes, "head_dim", *(["num_labels"] if self.has_labels else [])]
        return {name: values[name] for name in dict.fromkeys(names)}

    def ask(self, point: int, **more: Any) -> Asked:
        """Ask transformers."""
        return build.__wrapped__(json.dumps(self.config(point, **more)))

    def same(self, *classes: str, **more: Any) -> bool:
        """Return whether other values of some keys change nothing, in the first class and in that of most tensors."""
        return all(self._is_same(name, more) for name in classes or {self.names[0], self.main})

    def _reads_the_same(self, **more: Any) -> bool:
        """Return whether the deepest model of all points is read as without other values of some keys."""
        plain = read_config(self.config(2))
        try:
            other = read_config(self.config(2, **more))
        except Mha2GqaError:
            return False
        return all(same(read(plain, key), read(other, key)) for key in READ if key not in more)

    def _is_same(self, class_: str, more: Config) -> bool:
        plain = self.plain(class_)
        try:
            asked = self.ask(0, architectures=[class_], **more)
        except Mha2GqaError:
            return False
        said = {key for key in READ if {key, self.aliases.get(key)} & more.keys()} | {"rope_parameters"}
        are_read = (same(read(asked.config, key), read(plain.config, key)) for key in READ if key not in said)
        return facts(asked) == facts(plain) and all(are_read)

    def without(self, config: Config) -> Config:
        """Return a config that leaves to its class what it can."""
        filled = {key for key in (*self.sizes, "head_dim") if key in self.fields and self.fields[key] is None}
        tokens = {key: self.fields.get(key) for key in ("bos_token_id", "eos_token_id")}
        filled |= {key for key, one in tokens.items() if not isinstance(one, int) or one < config.get("vocab_size", 0)}
        return {key: value for key, value in config.items() if key not in filled}

    def find_keys(self) -> None:
        """Find what each key may say."""
        self.keys = dict.fromkeys(self.sizes, "size") | ({"id2label": "labels"} if self.has_labels else {})
        self._find_kinds()
        others = {key: default for key, default in self.fields.items() if key not in self.keys and key not in ROTARY}
        for form in TRIED:
            self._settle(form, [key for key, default in others.items() if _form(key, default) == form])
        self.keys |= {key: "switch" for key in others if self._is_switch(key)}
        self._find_choices()
        twins = {key: one for key, one in TWINS.items() if key in self.fields}
        self.keys |= {key: f"={one}" for key, one in twins.items() if self.same(**{key: self.config(0)[one]})}
        if "rope_parameters" in self.fields:
            self._find_rotation()
        self._find_unread()
        if self.keys.get("use_sliding_window") == "switch" and not self._reads_the_same(**WINDOWED):
            del self.keys["use_sliding_window"]
        self._find_spelled()
        known = [key for key, domain in self.keys.items() if domain == "activation"]
        self.activations = [name for name in ACTIVATIONS if known and self.same(**dict.fromkeys(known, name))]

    def _find_kinds(self) -> None:
        if "layer_types" in self.fields:
            layers = self.config(0)["num_hidden_layers"]
            self.kinds = [kind for kind in KINDS if self._takes_kind(kind, layers)]
            self.keys |= {"layer_types": "kinds"} if self.kinds else {}

    def _find_choices(self) -> None:
        for key in CHOICES.keys() & self.fields.keys():
            self.keys[key], self.choices[key] = "choice", [*CHOICES[key]]
            asked = {one: self.ask(0, **{key: one}).config for one in CHOICES[key]}
            for name in [name for name in IMPLIED if name not in self.fields]:
                self.implied[name] = key, {one: read(config, name) for one, config in asked.items()}
                self.keys[name] = "implied"

    def _find_rotation(self) -> None:
        """Find how a config may say its rotation: in keys of former versions, too."""
        for names in ROTATIONS:
            for key, name, form in zip(names, ROTATIONS[0], ("number", "share"), strict=True):
                values = (0.5, 1.0) if form == "share" else (0.5, 1e6)
                if key not in self.keys and all(self._turns(key, name, one) for one in values):
                    self.keys[key], self.rotation = form, names
        ropes = [key for key in ROTARY if all(self.same(**{key: rope}) for rope in ROPES)]
        self.keys |= dict.fromkeys(ropes, "rope")

    def _turns(self, key: str, name: str, value: float) -> bool:
        """Return whether a key says a part of the rotation."""
        if not self.same(**{key: value}):
            return False
        said = read(self.ask(0, **{key: value}).config, "rope_parameters")
        return isinstance(said, dict) and said.get(name) == value

    def _find_unread(self) -> None:
        """Find which keys of others, and of generation, change nothing."""
        self.pops = self.same(**{key: 1 for key in GENERATION if key not in self.fields})
        self.keys |= {key: self.keys.get(key, "") for key in GENERATION if key in self.fields}
        others = [key for key in UNREAD if not {key} & {*self.fields, *self.keys, *self.aliases}]
        free = [key for key in others if UNREAD[key][0] == "switch" or not _mentions(self.class_, key)]
        free = free if self._are_unread(free) else [key for key in free if self._are_unread([key])]
        self.keys |= {key: UNREAD[key][0] for key in free}
        self.choices |= {key: [UNREAD[key][1]] for key in free if UNREAD[key][0] == "choice"}
        self._find_named()

    def _find_named(self) -> None:
        """Find whether a class that does not name a key, but may read it, takes any value of it."""
        mirrors = dict.fromkeys(family(self.model_type).mirrors, ("size", (1, 3, 64)))
        for key, (domain, values) in [*mirrors.items(), *NAMED.items()]:
            if key not in {*self.fields, *self.keys} and all(self.same(**{key: one}) for one in values):
                self.keys[key] = domain

    def _are_unread(self, keys: list[str]) -> bool:
        """Return whether keys of others change nothing, and are read as the class has it where they are read."""
        said = {key: UNREAD[key][1] for key in keys}
        ways = (said, said | {key: not one for key, one in said.items() if isinstance(one, bool)})
        return all(self.same(**way) and all(self._keeps(key, one) for key, one in way.items()) for way in ways)

    def _keeps(self, key: str, value: Any) -> bool:
        """Return whether a key that is read has the same value whatever a config says."""
        return key not in READ or same(
            read(self.plain(self.main).config, key), read(self.ask(0, **{key: value}).config, key)
        )

    def _find_spelled(self) -> None:
        for name, key in {**self.aliases, **SPELLED}.items():
            key = self.aliases.get(key, key)
            if name in self.fields or key not in self.sizes:
                continue
            config = self.config(0, architectures=[self.main])
            said = {name: config.pop(key), **config}
            try:
                asked = build.__wrapped__(json.dumps(said))
            except Mha2GqaError:
                continue
            if facts(asked) == facts(self.plain(self.main)) and read(asked.config, key) == said[name]:
                self.spelled[name] = key

    def _settle(self, form: str, keys: list[str]) -> None:
        """Find the widest domain of keys, of all together if they have the same."""
        for domain, values in TRIED[form] if keys else ():
            if all(self.same(**dict.fromkeys(keys, one)) for one in values):
                self.keys |= dict.fromkeys(keys, domain)
                return
        for key in keys if len(keys) > 1 else ():
            self._settle(form, [key])

    def _takes_kind(self, kind: str, layers: int) -> bool:
        try:
            asked = self.ask(0, architectures=[self.main], layer_types=[kind] * layers)
        except Mha2GqaError:
            return False
        return bool(facts(asked) == facts(self.plain(self.main)))

    def _is_switch(self, key: str) -> bool:
        try:
            return isinstance(self.fields[key], bool) and bool(self.ask(0, **{key: not self.fields[key]}))
        except Mha2GqaError:
            return False

    def switches(self) -> list[str]:
        """Return the switches that change tensors; others that change what is read of a config keep their default."""
        refused = family(self.model_type).refused_switches
        found = [*self.choices.keys() & CHOICES.keys(), *self.equal]
        for key in [key for key, domain in self.keys.items() if domain == "switch" and key in self.fields]:
            if self.same(**{key: not self.fields[key]}):
                if not self._reads_the_same(**{key: not self.fields[key]}):
                    del self.keys[key]
                continue
            asked = self.ask(0, architectures=[self.main], **{key: not self.fields[key]})
            plain = self.plain(self.main)
            moved = {one for one in READ if one != key and not same(read(asked.config, one), read(plain.config, one))}
            if key in family(self.model_type).counts:
                self.moved |= moved  # left to transformers, if anything reads them
            if len(found) < _MOST_SWITCHES and moved <= self.moved and key not in refused:
                found.append(key)
            else:
                del self.keys[key]
        return found

    def said(self) -> Config:
        """Return what configs may say."""
        every = self.general | self.fields
        defaults = {key: said for key, value in every.items() if (said := plain(value)) is not ABSENT}
        heads = self.aliases.get("num_attention_heads", "num_attention_heads")
        return {
            "sizes": self.sizes,
            "keys": dict.fromkeys(defaults, "") | self.keys,
            "kinds": self.kinds,
            "activations": self.activations,
            "choices": self.choices,
            "aliases": self.aliases,
            "implied": self.implied,
            "rotation": self.rotation,
            "spelled": self.spelled,
            "pops": self.pops,
            "parts": list(self.class_.sub_configs),
            "equal": self.equal,
            "padded": [key for key in ("vocab_size", "max_position_embeddings") if key in self.sizes],
            "divides": list(self._divides(heads)),
            "defaults": defaults,
        }

    def _divides(self, heads: str) -> Iterator[tuple[str, str]]:
        hidden = self.aliases.get("hidden_size", "hidden_size")
        if "d_kv" not in self.fields:
            yield from ((hidden, key) for key in self.sizes if key.endswith("attention_heads") or key == heads)
        halves = ("encoder_attention_heads", "decoder_attention_heads")
        if {"decoder_key_value_heads", *halves} <= {*self.sizes}:
            yield from (halves, halves[::-1])  # they are the same
        for key in [key for key in self.sizes if key.endswith("key_value_heads")]:
            own = key.replace("key_value", "attention")
            yield own if own in self.sizes else heads, key


def wider(model_type: str) -> bool:
    """Return whether a class may read a width of heads that it does not name."""
    class_ = CONFIG_MAPPING[model_type]
    return "head_dim" not in {field.name for field in dataclasses.fields(class_)} and _mentions(class_, "head_dim")


def _mentions(class_: type, key: str) -> bool:
    """Return whether the code of a model type has a word, and so may read a key of that name."""
    folder = Path(str(sys.modules[class_.__module__].__file__)).parent
    paths = (path for path in folder.glob("*.py") if path.name.startswith(("modeling_", "configuration_")))
    return any(re.search(rf"\b{key}\b", path.read_text(encoding="utf-8")) for path in paths)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _form(key: str, default: Any) -> str:
    """Return how the values of a key are tried."""
    if key.endswith("_token_id"):
        return "token"
    if key.endswith("suppress_tokens"):
        return "list"
    if key in ACTIVATION_KEYS:
        return "activation"
    if key in COUNTS or (key in SIZES and not isinstance(default, bool)):
        return "count"
    if isinstance(default, float):
        return "share" if "drop" in key else "float"
    return ""
