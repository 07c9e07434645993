"""Makes `mha2gqa/families/outlines.json`: asks transformers for many configs of each family, and fits what it says.

    python -m scripts.make_outlines            all families of the table, with this version of transformers
    python -m scripts.make_outlines llama      some, the others as they stand

For each model type a class is built at a few points (sizes that are told apart), with every combination of the switches
that change its tensors, and with other values of everything else. A key whose other values change what is fitted, or
are refused, may only have its default. What cannot be fitted is left out, and said. At last every answer is compared
with transformers' own at points that the fit has not seen.
"""

import dataclasses
import functools
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

import mha2gqa.families
from mha2gqa.errors import Mha2GqaError
from mha2gqa.families import outlines, tried
from mha2gqa.families.built import Asked, build
from mha2gqa.families.table import TABLE
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.latent.sources import ROWS, _layers, source_layers, whole_of
from mha2gqa.targets.latent.widths import Whole

PATH = Path(mha2gqa.families.__file__).with_name("outlines.json")

Config = dict[str, Any]

SIZES: Mapping[str, Sequence[int]] = {
    "num_hidden_layers": (2, 3, 5, 2, 4, 1),
    "num_attention_heads": (4, 6, 8, 12, 10, 16),
    "num_key_value_heads": (2, 3, 8, 1, 5, 2),
    "head_dim": (14, 22, 8, 26, 34, 64),
    "hidden_size": (64, 72, 144, 168, 220, 512),
    "intermediate_size": (74, 118, 86, 206, 142, 1234),
    "vocab_size": (131, 173, 149, 157, 191, 1009),
    "num_local_experts": (4, 7, 5, 9, 11, 16),
    "num_experts": (4, 7, 5, 9, 11, 16),
    "moe_intermediate_size": (46, 38, 62, 94, 58, 333),
    "shared_expert_intermediate_size": (106, 82, 122, 166, 134, 444),
    "shared_intermediate_size": (106, 82, 122, 166, 134, 444),
}
"""Sizes, and what they are at each point; the last point is for comparison alone."""
POINTS = range(5)
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "relu2", "swish")
COUNTS = (
    *("max_position_embeddings", "sliding_window", "max_window_layers", "num_experts_per_tok", "pretraining_tp"),
    *("original_max_position_embeddings", "query_pre_attn_scalar", "decoder_sparse_step"),
)
"""Keys of whole numbers besides sizes and tokens that are tried."""
ROTARY = ("rope_parameters", "rope_scaling")
ROPES: tuple[Any, ...] = (
    {"rope_type": "default", "rope_theta": 5000.0},
    {"type": "linear", "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
KINDS = ("full_attention", "sliding_attention")
READ = (
    *("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "num_hidden_layers"),
    *("vocab_size", "max_position_embeddings", "layer_types", "sliding_window", "attention_chunk_size", "is_decoder"),
    *("is_encoder_decoder", "tie_word_embeddings", "num_kv_shared_layers", "attn_config", "rope_parameters"),
    *("attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "hidden_act", "hidden_activation", "use_qk_norm"),
    *("clip_qkv", "alibi", "attn_logit_softcapping", "final_logit_softcapping", "logit_cap", "attn_logit_cap"),
)
"""What conversion and inspection read of a config."""


TRIED: Mapping[str, Sequence[tuple[str, Sequence[Any]]]] = {
    "token": (("ids", (5, None, 10**6, [5, 6])), ("id", (5, None, 10**6)), ("token", (5, None))),
    "count": (("size?", (1, 64, 1000, None)), ("size", (1, 64, 1000))),
    "activation": (("activation", ("relu", "silu")),),
    "float": (
        ("number", (7.5, 1e-6, 2)),
        ("float", (7.5, 1e-6)),
        ("share", (0.0, 0.5, 1.0, 0)),
        ("part", (0.0, 0.5, 1.0)),
    ),
}
"""Form of a key -> domains of `outlines.py`, widest first, and the values by which each is tried."""


UNREAD: Mapping[str, tuple[str, Any]] = {
    "is_llama_config": ("switch", True),
    "rope_interleaved": ("switch", True),
    "use_mrope": ("switch", True),
    "pretraining_tp": ("size", 4),
    "tokenizer_class": ("text", "LlamaTokenizer"),
    "unk_token_id": ("token", 1),
    "unsloth_version": ("text", "1"),
    "unsloth_fixed": ("switch", True),
    "model_max_length": ("size", 77),
    "max_window_layers": ("size", 7),
    "use_sliding_window": ("switch", False),
}
"""Keys that configs of other classes have, or other programs: their domains, and a value by which they are tried."""


class UnfitError(Exception):
    """What transformers says has no form that the data has."""


class Family:
    """A model type, and what was found of it."""

    def __init__(self, model_type: str, *, has_width: bool) -> None:
        self.model_type = model_type
        self.class_ = CONFIG_MAPPING[model_type]
        own = {field.name: field for field in dataclasses.fields(self.class_)}
        general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
        self.fields = {name: _default(field) for name, field in own.items() if name not in general}
        needed = {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size"}
        if not needed <= self.fields.keys() or self.class_.sub_configs_defaults:
            raise UnfitError("its config has other keys")
        if has_width and "head_dim" not in self.fields and self._mentions("head_dim"):
            self.fields["head_dim"] = None  # read where a config has it
        self.sizes = [name for name in SIZES if name in self.fields and self.fields[name] is not False]
        causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
        names = [causal, modeling_auto.MODEL_MAPPING_NAMES.get(model_type)]
        self.names = [name for name in names if isinstance(name, str)]
        if not self.names:
            raise UnfitError("it has no class of its own")
        self.keys: dict[str, str] = {}
        self.kinds: list[str] = []
        self.activations: list[str] = []

    def config(self, point: int, **more: Any) -> Config:
        """Return a config at a point."""
        sizes = {name: SIZES[name][point] for name in self.sizes}
        if "head_dim" not in self.fields:
            sizes["hidden_size"] = SIZES["num_attention_heads"][point] * SIZES["head_dim"][point]
        tokens = {name: 1 for name in self.fields if name.endswith("_token_id")}
        return {"model_type": self.model_type, "architectures": self.names[:1]} | sizes | tokens | more

    def ask(self, point: int, **more: Any) -> Asked:
        """Ask transformers."""
        return build.__wrapped__(json.dumps(self.config(point, **more)))

    def same(self, **more: Any) -> bool:
        """Return whether other values of some keys change nothing."""
        try:
            asked = self.ask(0, **more)
        except Mha2GqaError:
            return False
        return _facts(asked) == _facts(self.plain) and all(
            _read(asked, key) == _read(self.plain, key) for key in READ if key not in more and key != "rope_parameters"
        )

    @functools.cached_property
    def plain(self) -> Asked:
        """What transformers says at the first point."""
        return self.ask(0)

    def without(self, config: Config) -> Config:
        """Return a config that leaves to its class what it can."""
        filled = {"head_dim", "num_key_value_heads"} & {key for key, value in self.fields.items() if value is None}
        filled |= {"bos_token_id", "eos_token_id"}  # a class may have others in the place of None
        return {key: value for key, value in config.items() if key not in filled}

    def find_keys(self) -> None:
        """Find what each key may say."""
        self.keys = dict.fromkeys(self.sizes, "size")
        if "layer_types" in self.fields:
            layers = self.config(0)["num_hidden_layers"]
            self.kinds = [kind for kind in KINDS if self._takes_kind(kind, layers)]
            self.keys |= {"layer_types": "kinds"} if self.kinds else {}
        others = {key: default for key, default in self.fields.items() if key not in self.keys and key not in ROTARY}
        for form in TRIED:
            self._settle(form, [key for key, default in others.items() if _form(key, default) == form])
        self.keys |= {key: "switch" for key in others if self._is_switch(key)}
        if "rope_parameters" in self.fields:
            for key, form, values in (
                ("rope_theta", "number", (0.5, 1e6)),
                ("partial_rotary_factor", "share", (0.5, 1.0)),
            ):
                if key not in self.keys and all(self.same(**{key: one}) for one in values):
                    self.keys[key] = form
            ropes = [key for key in ROTARY if all(self.same(**{key: rope}) for rope in ROPES)]
            self.keys |= dict.fromkeys(ropes, "rope")
        others = {key: one for key, one in UNREAD.items() if key not in self.fields and not self._mentions(key)}
        self.keys |= {key: domain for key, (domain, value) in others.items() if self.same(**{key: value})}
        known = [key for key, domain in self.keys.items() if domain == "activation"]
        self.activations = [name for name in ACTIVATIONS if known and self.same(**dict.fromkeys(known, name))]

    def _mentions(self, key: str) -> bool:
        """Return whether the code of a model type has a word, and so may read a key of that name."""
        folder = Path(str(sys.modules[self.class_.__module__].__file__)).parent
        return any(re.search(rf"\b{key}\b", path.read_text(encoding="utf-8")) for path in folder.glob("*.py"))

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
            asked = self.ask(0, layer_types=[kind] * layers)
        except Mha2GqaError:
            return False
        return bool(_facts(asked) == _facts(self.plain))

    def _is_switch(self, key: str) -> bool:
        try:
            return isinstance(self.fields[key], bool) and bool(self.ask(0, **{key: not self.fields[key]}))
        except Mha2GqaError:
            return False

    def switches(self) -> list[str]:
        """Return the switches that change tensors; others that change what is read of a config keep their default."""
        found: list[str] = []
        for key in [key for key, domain in self.keys.items() if domain == "switch" and key in self.fields]:
            if self.same(**{key: not self.fields[key]}):
                continue
            asked = self.ask(0, **{key: not self.fields[key]})
            if len(found) < 3 and all(_read(asked, one) == _read(self.plain, one) for one in READ if one != key):
                found.append(key)
            else:
                del self.keys[key]
        return found

    def data(self) -> dict[str, Any]:
        """Return all that is found."""
        self.find_keys()
        switches = self.switches()
        combinations = [
            dict(zip(switches, one, strict=True)) for one in itertools.product(*[(False, True)] * len(switches))
        ]
        data: dict[str, Any] = {
            "default": self.names[0],
            "sizes": self.sizes,
            "keys": dict(self.keys),
            "kinds": self.kinds,
            "activations": self.activations,
            "aliases": dict(self.class_.attribute_map),
        }
        defaults = {key: value for key, value in self.fields.items() if _is_plain(value)}
        data["keys"] |= {key: "" for key in defaults if key not in data["keys"]}
        data["defaults"] = defaults
        data |= self._settings(defaults)
        data["classes"] = {name: self._class(name, combinations) for name in self.names}
        for name in self.names[1:]:
            self._shorten(data["classes"][name], data["classes"][self.names[0]])
        return data

    def _settings(self, defaults: Config) -> dict[str, Any]:
        """Fit what is read of a config."""
        configs = [self.config(point) for point in POINTS]
        configs += [self.without(one) for one in configs[:2]]
        asked = [({**defaults, **config}, build.__wrapped__(json.dumps(config))) for config in configs]
        data: dict[str, Any] = {"filled": {}, "fixed": {}, "known": [], "absent": [], "optional": [], "cycle": None}
        data |= {"theta": None, "turned": None}
        for key in READ:
            pairs = [(config, _read(one, key)) for config, one in asked]
            if all(value is _ABSENT for _, value in pairs):
                data["absent"].append(key)
            elif any(value is _ABSENT for _, value in pairs):
                if all(_same(config[key], value) if config.get(key) else value is _ABSENT for config, value in pairs):
                    data["optional"].append(key)
            elif self._is_fitted(key, pairs, data):
                data["known"].append(key)
        if "layer_types" in self.fields and data["cycle"] is None:
            raise UnfitError("its kinds of layers follow no cycle")
        return data

    def _is_fitted(self, key: str, pairs: list[tuple[Config, Any]], data: dict[str, Any]) -> bool:
        """Fit one key that is read of a config; return whether that was possible."""
        values = [value for _, value in pairs]
        if key == "rope_parameters" and key in self.fields:
            theta = self.class_.default_theta
            turned = values[0].get("partial_rotary_factor") if isinstance(values[0], dict) else None
            read = [tried.rope_parameters(config, {"theta": theta, "turned": turned}) for config, _ in pairs]
            is_plain = isinstance(theta, float | int) and read == [{key: value} for value in values]
            data |= {"theta": theta, "turned": turned} if is_plain else {}
            return is_plain
        if key == "layer_types":
            data["cycle"] = _cycle(values)
            return data["cycle"] is not None
        if all(_same(config.get(key), value) for config, value in pairs):
            return True
        if len({*map(repr, values)}) == 1:
            data["fixed"][key] = values[0]
            return True
        for form in ("num_attention_heads", "hidden_size//num_attention_heads"):
            if all(_same(_fill(config, key, form), value) for config, value in pairs):
                data["filled"] |= {key: form} if key in self.fields else {}
                return key in (*self.fields, "head_dim")
        return False

    def _class(self, name: str, combinations: list[Config]) -> dict[str, Any]:
        """Fit the tensors of a class."""
        found: dict[tuple[Any, ...], list[Config]] = {}
        first = self.ask(0, architectures=[name])
        before: dict[str, set[str]] = {}
        for combination in combinations:
            asked = [self.ask(point, architectures=[name], **combination) for point in POINTS]
            sizes = [self._sizes(point) for point in POINTS]
            entries = list(_fit_all(asked, sizes))
            for entry in entries:
                found.setdefault(entry, []).append(combination)
                before.setdefault(entry[0], set())
            for last, entry in itertools.pairwise(entries):
                before[entry[0]].add(last[0])
        tensors = [
            [pattern, list(shape), kind, places, _when(there, combinations)]
            for (pattern, shape, kind, places), there in found.items()
        ]
        return {
            "prefix": first.prefix,
            "base": first.is_base,
            "norm": first.final_norm,
            "like_llama": self.model_type in ROWS
            and all(self._is_like_llama(point, name, combination) for point in POINTS for combination in combinations),
            "tensors": _in_order(tensors, list(TopologicalSorter(before).static_order())),
            "attention": _attention(first),
        }

    def _shorten(self, base: dict[str, Any], whole: dict[str, Any]) -> None:
        """Leave out what a base model has as the model around it has it, under the prefix."""
        if (base["tensors"], base["attention"]) == outlines.based(whole):
            base["tensors"] = base["attention"] = None

    def _is_like_llama(self, point: int, name: str, combination: Config) -> bool:
        """Return whether what latents need of all layers is as in Llama."""
        config = self.config(point, architectures=[name], **combination)
        model, width = Architecture(config), self._sizes(point)["head_dim"]
        if _layers(model):
            return False
        found = whole_of(source_layers(model))
        return found == Whole(config["num_key_value_heads"], width, width, width)

    def _sizes(self, point: int) -> dict[str, int]:
        config = self.config(point)
        sizes = {name: config[name] for name in self.sizes}
        return sizes | {"head_dim": sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]}


_ABSENT = object()


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _form(key: str, default: Any) -> str:
    """Return how the values of a key are tried."""
    if key.endswith("_token_id"):
        return "token"
    if key in COUNTS:
        return "count"
    if key in ("hidden_act", "hidden_activation"):
        return "activation"
    return "float" if isinstance(default, float) else ""


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _read(asked: Asked, key: str) -> Any:
    value = getattr(asked.config, key, _ABSENT)
    return list(value) if isinstance(value, tuple) else value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _fill(config: Config, key: str, form: str) -> Any:
    return config[key] if config.get(key) is not None else tried.filled(config, form)


def _cycle(lists: list[list[str]]) -> list[str] | None:
    longest = max(lists, key=len)
    for length in range(1, 9):
        cycle = (longest + longest[:1] * 8)[:length]
        if all([cycle[layer % length] for layer in range(len(one))] == one for one in lists):
            return cycle
    return None


def _facts(asked: Asked) -> Any:
    """Return all that a blueprint says."""
    modules = {name.rpartition(".")[0] for name in asked.module_shapes}
    attention = {name: asked.attention(name) for name in modules}
    said = asked.architecture, asked.prefix, asked.is_base, asked.final_norm, dict(asked.shapes)
    return *said, list(asked.module_shapes.items()), list(asked.parameters.items()), attention


def _attention(asked: Asked) -> list[str]:
    """Return the modules that know their layer, the first number in their name; numbers are stars."""
    found: dict[str, bool] = {}
    for name in asked.module_shapes:
        path = name.split(".")[:-1]
        for length in range(1, len(path) + 1):
            module = ".".join(path[:length])
            says = asked.attention(module)
            numbers = [int(part) for part in path[:length] if part.isdigit()]
            if says.shares or says.keys_are_values or says.layer not in (None, *numbers[:1]):
                raise UnfitError(f"{module} has keys and values that are not its own")
            pattern = ".".join("*" if part.isdigit() else part for part in path[:length])
            if found.setdefault(pattern, says.layer is not None) != (says.layer is not None):
                raise UnfitError(f"not every {pattern} knows its layer")
    return [pattern for pattern, knows in found.items() if knows]


def _fit_all(asked: Sequence[Asked], sizes: Sequence[Mapping[str, int]]) -> Iterator[tuple[Any, ...]]:
    """Yield pattern, shape, kind and places of each kind of tensor, as they are at all points."""
    grouped = [_grouped(one) for one in asked]
    if any(one.keys() != grouped[0].keys() for one in grouped):
        raise UnfitError("tensors come and go with its sizes")
    for pattern in grouped[0]:
        kinds = {tensor[1:] for one in grouped for tensor in one[pattern].values()}
        if len(kinds) != 1 or any(len({tensor[0] for tensor in one[pattern].values()}) != 1 for one in grouped):
            raise UnfitError(f"{pattern} differs from layer to layer")
        counts = [_counts(one[pattern]) for one in grouped]
        loops = [_expression(list(numbers), sizes) for numbers in zip(*counts, strict=True)]
        shapes = [next(iter(one[pattern].values()))[0] for one in grouped]
        if len({len(shape) for shape in shapes}) != 1:
            raise UnfitError(f"{pattern} has another form at some sizes")
        shape = tuple(_expression(list(numbers), sizes) for numbers in zip(*shapes, strict=True))
        texts = pattern.split("*")
        name = texts[0] + "".join(f"{{{loop}}}{text}" for loop, text in zip(loops, texts[1:], strict=True))
        yield (name, shape, *next(iter(kinds)))


def _grouped(asked: Asked) -> dict[str, dict[tuple[int, ...], tuple[Any, ...]]]:
    """Return pattern -> numbers in a name -> shape, kind and places."""
    found: dict[str, dict[tuple[int, ...], tuple[Any, ...]]] = {}
    for name in dict.fromkeys([*asked.module_shapes, *asked.shapes]):
        places = "".join(
            letter
            for letter, known in (("m", asked.module_shapes), ("s", asked.shapes), ("p", asked.parameters))
            if name in known
        )
        shape = asked.module_shapes.get(name, asked.shapes.get(name))
        if "m" in places and "s" in places and asked.shapes[name] != shape:
            raise UnfitError(f"{name} has another shape in the file")
        kind = asked.parameters[name].kind if name in asked.parameters else ""
        parts = name.split(".")
        numbers = tuple(int(part) for part in parts if part.isdigit())
        pattern = ".".join("*" if part.isdigit() else part for part in parts)
        found.setdefault(pattern, {})[numbers] = (shape, kind, places)
    return found


def _counts(tensors: Mapping[tuple[int, ...], Any]) -> list[int]:
    counts = [max(numbers) + 1 for numbers in zip(*tensors, strict=True)]
    if {*tensors} != set(itertools.product(*map(range, counts))):
        raise UnfitError("layers are missing")
    return counts


@functools.cache
def _terms(names: tuple[str, ...]) -> list[str]:
    heads = [name for name in names if name in ("num_attention_heads", "num_key_value_heads", "head_dim")]
    pairs = ["*".join(pair) for pair in itertools.combinations(names, 2)]
    fused = "num_attention_heads*head_dim+2*num_key_value_heads*head_dim" if len(heads) == 3 else ""
    return [*names, *pairs, *(f"{times}*{name}" for times in (2, 3, 4) for name in (*names, *pairs)), fused]


def _expression(values: list[int], sizes: Sequence[Mapping[str, int]]) -> str:
    """Return the sum of products of sizes that is these numbers at all points."""
    if len({*values}) == 1:
        return str(values[0])
    for term in filter(None, _terms(tuple(sizes[0]))):
        if [outlines.evaluate(term, one) for one in sizes] == values:
            return term
    raise UnfitError(f"{values} is no sum of products of sizes")


def _when(there: list[Config], combinations: list[Config]) -> Config:
    """Return the switches that a tensor needs."""
    for names in itertools.chain.from_iterable(
        itertools.combinations(there[0], size) for size in range(len(there[0]) + 1)
    ):
        wanted = {name: there[0][name] for name in names}
        if [one for one in combinations if wanted.items() <= one.items()] == there:
            return wanted
    raise UnfitError("switches work together")


def _in_order(tensors: list[list[Any]], names: list[str]) -> list[list[Any]]:
    """Return tensors in the order of their names, those of a loop together."""
    places: dict[str, int] = {}
    for name in names:
        for end in (match.start() for match in re.finditer(r"\{|$", name)):
            places.setdefault(name[:end], len(places))
    return sorted(tensors, key=lambda one: [places[one[0][: match.start()]] for match in re.finditer(r"\{|$", one[0])])


CHECKED: Mapping[str, Sequence[Any]] = {
    "switch": (False, True),
    "share": (0.0, 0.25),
    "part": (0.0, 0.25),
    "number": (0.5, 3.0),
    "float": (0.5, 3.0),
    "size?": (17, 4096),
    "token": (0, 7),
    "id": (0, 10**6),
    "ids": (0, [1, 10**6]),
}
"""Domain -> values that are chosen of."""


def check(family: Family, data: dict[str, Any]) -> None:
    """Hold the data against transformers at the last point, and where keys say something else.

    Raises:
        UnfitError: They differ.
    """
    numbers = random.Random(0)  # noqa: S311 (no secret)
    ways = [(None, 0.0), (None, 0.4), (None, 1.0), *((rope, 0.4) for rope in ROPES)]
    for point, name, (rope, share) in itertools.product((5, 2), data["classes"], ways):
        more = {key: numbers.choice(CHECKED[one]) for key, one in data["keys"].items() if one in CHECKED}
        more = {key: value for key, value in more.items() if numbers.random() < share}
        if rope is not None and data["keys"].get(ROTARY[0]) == "rope":
            more[ROTARY[0]] = rope
        config = family.config(point, architectures=[name], **more)
        config = config if share else family.without(config)
        asked = build.__wrapped__(json.dumps(config))
        said = tried.read_values(config, data)
        if said is None:
            raise UnfitError(f"the data does not cover {config}")
        found: Any = outlines.Outlined(name, data, said, functools.partial(build, json.dumps(config)))
        if _facts(found) != _facts(asked):
            raise UnfitError("the data says something else than transformers")
        for key in (*data["known"], *data["absent"], *data["optional"]):
            if not _same(_read(asked, key), getattr(found.settings, key, _ABSENT)):
                raise UnfitError(f"{key} is {_read(asked, key)!r}, not {getattr(found.settings, key, _ABSENT)!r}")


def _made(name: str) -> dict[str, Any] | None:
    """Return what is found of a model type; None, and why, where it has no form that the data has."""
    for has_width in (True, False):  # whether a width of heads that a class does not name is read all the same
        try:
            family = Family(name, has_width=has_width)
            data = family.data()
            check(family, data)
        except (UnfitError, Mha2GqaError) as reason:
            if not has_width:
                print(f"{name}: {reason}", flush=True)  # noqa: T201
        else:
            return data
    return None


def main(names: Sequence[str]) -> None:
    """Make the data, and say what is left out."""
    torch.set_num_threads(1)
    outlines._types = dict  # type: ignore[assignment]  # what is asked is transformers
    kept = json.loads(PATH.read_text(encoding="utf-8"))["types"] if names and PATH.exists() else {}
    for name in names or [name for name, row in TABLE.items() if not row.refusal and name in CONFIG_MAPPING]:
        kept.pop(name, None)
        data = _made(name)
        if data is None:
            continue
        kept[name] = data
        _write(kept)
        print(f"{name}: {len(data['classes'])} classes, {len(data['keys'])} keys", flush=True)  # noqa: T201


def _write(types: Mapping[str, Any]) -> None:
    """Write the data, a line for each model type."""
    lines = [f"{json.dumps(name)}: {json.dumps(data, separators=(',', ':'))}" for name, data in sorted(types.items())]
    text = ",\n".join(lines)
    PATH.write_text(f'{{"transformers": "{transformers.__version__}", "types": {{\n{text}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
