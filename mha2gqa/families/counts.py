"""Where a config keeps its numbers of KV heads, and how they are rewritten.

A config may hold several: one per tower, one per kind of layer, one per layer. Each `Count` is one
number and every JSON path that holds it: also those that transformers does not read, but engines and its
former versions do. The values are those that transformers reads, so a key that is missing from the file
counts with the default of its class, and is written explicitly when rewritten.
"""

import copy
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from mha2gqa.errors import CheckpointError, FamilyError
from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.families.row import Family
from mha2gqa.families.table import family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Path: TypeAlias = tuple[str, ...]

FORMER_KEYS = ("rope_theta", "partial_rotary_factor", "rope_scaling")
"""Rotary settings in a config that `rope_parameters` says as well; results of 0.1.0 lack them."""
_PLAIN_ROTATION = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""What is said of a rotation at the frequencies of its base."""


@dataclass(frozen=True)
class Decoder:
    """A part of a model that owns numbers of KV heads."""

    path: Path
    """From the root config; empty when it is the root."""
    config: "PreTrainedConfig"
    family: Family

    @property
    def query_heads(self) -> int:
        """Query heads of a layer (the global number where layers differ); 0 without attention."""
        return int(_value(self.config, "num_attention_heads") or 0)


@dataclass(frozen=True)
class Count:
    """A number of KV heads and the JSON paths that hold it."""

    decoder: Decoder
    paths: tuple[Path, ...]
    heads: int
    mirrors: tuple[Path, ...] = ()
    """Paths that hold, beside a switch, the number itself."""

    @property
    def part(self) -> str:
        """The kind of attention that it counts: `decoder` where a model has but one."""
        return self.decoder.family.parts.get(self.paths[0][-1], "decoder")

    def encode(self, heads: int) -> int | bool:
        """Return the JSON value that means `heads`."""
        if self.decoder.family.shares:
            return self.decoder.query_heads // heads
        return heads == 1 if self.decoder.family.switch else heads


Move: TypeAlias = tuple[Count, int]
"""A number of KV heads of a config, and what it becomes."""


def find_counts(config_json: ConfigJson, plan: Blueprint) -> list[Count]:
    """Return the numbers of KV heads of a config, the main one of each decoder first.

    Raises:
        FamilyError: The family cannot be converted, or has no number of KV heads.
        CheckpointError: A number is not a positive whole one.
    """
    refuse_family(config_json)
    parts = decoders(plan)
    for part in parts:
        _refuse(part.family, part.config.model_type)
    known = {path for path, _ in _walk(plan.settings)}
    is_root_read = any(not part.path for part in parts)
    counts = [count for part in parts for count in _counts(config_json, part)]
    counts = [count if is_root_read else _with_copies(config_json, plan, count, known) for count in counts]
    if not counts:
        raise FamilyError(
            f"The transformers class of {plan.settings.model_type!r} has no number of KV heads, "
            "only multi-head attention or none",
            expected="a family with num_key_value_heads or its like, or one that another class can stand in for",
            remedy="A model class with narrower keys and values would have to be written, as in mha2gqa/shipped",
        )
    return counts


def refuse_family(config_json: ConfigJson) -> None:
    """Refuse a model type that its row says cannot be converted, before its model is built.

    Raises:
        FamilyError: It cannot be converted; the message says why.
    """
    model_type = str(config_json.get("model_type"))
    row = family(model_type)
    _refuse(row, model_type)
    for key, reason in row.refused_switches.items():
        if config_json.get(key):
            _refuse(Family(refusal=reason), model_type)


def _refuse(row: Family, model_type: str) -> None:
    if row.refusal:
        raise FamilyError(f"Models of type {model_type!r} cannot be converted: {row.refusal}")


def decoders(plan: Blueprint) -> list[Decoder]:
    """Return the parts of a model that own numbers of KV heads, without judging them."""
    root = family(plan.settings.model_type)
    paths = [tuple(path.split(".")) for path in root.decoders] or [_text_path(plan.settings)]
    found = [(path, _follow(plan.settings, path)) for path in paths]
    return [Decoder(path, config, _row(root, config)) for path, config in found]


def rewrite(config_json: ConfigJson, moves: Sequence[Move]) -> ConfigJson:
    """Return a copy of a config with each count set to its new number of heads, as other programs read it, too."""
    result = copy.deepcopy(config_json)
    for count, heads in moves:
        for path in count.paths:
            _enter(result, path[:-1])[path[-1]] = count.encode(heads)
        for path in count.mirrors:
            _enter(result, path[:-1])[path[-1]] = heads
    for part in dict.fromkeys(count.decoder.path for count, heads in moves if count.heads != heads):
        held = _look(result, part)
        add_former_keys(held if isinstance(held, dict) else result)
    return result


def add_former_keys(config: dict[str, Any]) -> None:
    """Write the rotary settings of a part in the keys of former versions, too; what is there stays.

    transformers 5 keeps the base of the rotation in `rope_parameters` alone, and reads both forms as the same. Its
    former versions, MLX and others read the other keys, and take defaults without a word where these are missing.
    """
    held = config.get("rope_parameters")
    if not isinstance(held, dict) or "rope_theta" not in held or any(isinstance(one, dict) for one in held.values()):
        return  # layers of several kinds, each with a base of its own, have other former keys in each class
    *plain, scaling = FORMER_KEYS
    for key in plain:
        if key in held:
            config.setdefault(key, held[key])
    if held.get("rope_type", "default") != "default" or not held.keys() <= _PLAIN_ROTATION:
        config.setdefault(scaling, dict(held))


def _row(root: Family, config: "PreTrainedConfig") -> Family:
    """Return a decoder's own row; where it is plain, the model around it says how it is stored."""
    own = family(config.model_type)
    return replace(root, freedom=own.freedom) if own == Family(freedom=own.freedom) else own


def _text_path(config: "PreTrainedConfig") -> Path:
    """Return the path to the config of the text decoder: the object that transformers itself picks."""
    text = config.get_text_config(decoder=True)
    return next((path for path, found in _walk(config) if found is text), ())


def _walk(config: "PreTrainedConfig", path: Path = ()) -> "Iterator[tuple[Path, PreTrainedConfig]]":
    yield path, config
    for key in config.sub_configs:
        inner: Any = getattr(config, key, None)
        if hasattr(inner, "sub_configs"):
            yield from _walk(inner, (*path, key))


def _follow(config: Any, path: Path) -> Any:
    for key in path:
        config = getattr(config, key)
    return config


def _value(config: Any, key: str) -> Any:
    """Return a config's value, the global one where layers override it."""
    read = getattr(config, "_getattr_without_heterogeneous_validation", None)
    value = read(key, None) if read else getattr(config, key, None)
    return getattr(config, key, None) if value is None and key in _aliases(config) else value


def _aliases(config: Any) -> dict[str, str]:
    return getattr(config, "attribute_map", None) or {}


def _counts(config_json: ConfigJson, decoder: Decoder) -> Iterator[Count]:
    for key in decoder.family.counts:
        path = tuple(key.split("."))
        found = _blocks if "*" in path else _occurrences
        for paths, heads in found(config_json, decoder, path):
            yield Count(decoder, paths, heads, tuple((*paths[0][:-1], one) for one in decoder.family.mirrors))


def _with_copies(config_json: ConfigJson, plan: Blueprint, count: Count, known: Set[Path]) -> Count:
    """Return a count of a part with the places that hold copies of it.

    Composite models of transformers 4.52 to 4.57 say what their text part is at the top as well; others have the whole
    part twice, under another name that transformers does not read. A copy that says another number is none.
    """
    *holder, key = count.paths[0]
    own, top = _look(config_json, tuple(holder)), config_json.get(key)
    if top == count.heads and not hasattr(type(plan.config), key) and (key,) not in count.paths:
        return replace(count, paths=(*count.paths, (key,)))
    twins = [
        (name, key)
        for name, part in config_json.items()
        if isinstance(part, dict) and (name,) not in known and part.get(key) == count.heads and _is_twin(part, own)
    ]
    return replace(count, paths=(*count.paths, *twins))


def _is_twin(part: dict[str, Any], own: Any) -> bool:
    """Return whether two objects describe the same text model, by its size."""
    return isinstance(own, dict) and all(part.get(key) == own.get(key) for key in ("hidden_size", "num_hidden_layers"))


def _blocks(config_json: ConfigJson, decoder: Decoder, key: Path) -> Iterator[tuple[tuple[Path, ...], int]]:
    """Yield each number that the layers of a list have, the largest first, with the places that hold it."""
    star = key.index("*")
    by_value: dict[int, list[Path]] = {}
    for number, block in enumerate(_look(config_json, (*decoder.path, *key[:star])) or ()):
        heads = _heads(_look(block, key[star + 1 :]), decoder, key)
        by_value.setdefault(heads, []).append((*decoder.path, *key[:star], str(number), *key[star + 1 :]))
    for heads in sorted(by_value, reverse=True):
        yield tuple(by_value[heads]), heads


def _occurrences(config_json: ConfigJson, decoder: Decoder, key: Path) -> Iterator[tuple[tuple[Path, ...], int]]:
    """Yield each number that `key` stands for, with the places that hold it."""
    holder = _holder(config_json, decoder.path, key)
    inner = _look(config_json, holder)
    section, owner = _look(inner, key[:-1]), _follow(decoder.config, key[:-1])
    names = [key[-1], *(alias for alias, name in _aliases(owner).items() if name == key[-1])]
    written = [name for name in names if _look(section, (name,)) is not None]
    value = section[written[0]] if written else _value(owner, key[-1])
    is_main = ".".join(key) == decoder.family.counts[0]
    if value is None and is_main and hasattr(owner, key[-1]):
        value = decoder.query_heads
    if value is not None:
        paths = tuple((*holder, *key[:-1], name) for name in written or names[:1])
        yield paths, _heads(value, decoder, key)
    yield from _layers(inner, holder, key)


def _layers(inner: Any, holder: Path, key: Path) -> Iterator[tuple[tuple[Path, ...], int]]:
    """Yield the numbers that single layers override (`per_layer_config` of transformers 5)."""
    layers = inner.get("per_layer_config") if isinstance(inner, dict) else None
    by_value: dict[int, list[Path]] = {}
    for layer, overrides in (layers or {}).items():
        value = _look(overrides, key)
        if isinstance(value, int):
            by_value.setdefault(value, []).append((*holder, "per_layer_config", layer, *key))
    for value, paths in by_value.items():
        yield tuple(paths), value


def _heads(value: Any, decoder: Decoder, key: Path) -> int:
    if decoder.family.switch:
        return 1 if value else decoder.query_heads
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json has {'.'.join((*decoder.path, *key))} = {value!r}", expected="a positive whole number"
        )
    return decoder.query_heads // value if decoder.family.shares else value


def _holder(config_json: ConfigJson, path: Path, key: Path) -> Path:
    """Return where the decoder's keys stand in the file: nested, or at the top of a flat legacy file."""
    if path and _look(config_json, path) is None and _look(config_json, key) is not None:
        return ()
    return path


def _look(content: Any, path: Path) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _enter(content: Any, path: Path) -> Any:
    for key in path:
        content = content[int(key)] if isinstance(content, list) else content.setdefault(key, {})
    return content
