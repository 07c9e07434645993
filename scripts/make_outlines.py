"""Makes `mha2gqa/families/outlines.json`: asks transformers for many configs of each family, and fits what it says.

    python scripts/make_outlines.py            all families of the table, with this version of transformers
    python scripts/make_outlines.py llama      some, the others as they stand

For each model type a class is built at a few points (sizes that are told apart), with every combination of the switches
that change its tensors, and with other values of everything else (`outline_points.py`). A key whose other values change
what is fitted, or are refused, may only have its default. What cannot be fitted is left out, and said. At last every
answer is compared with transformers' own at points that the fit has not seen.
"""

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
from outline_answers import facts, read, same
from outline_keys import GENERATION, Keys, wider
from outline_points import CHECKED, POINTS, ROPES, ROTARY
from outline_read import Read
from outline_tensors import Config, UnfitError, attention_modules, conditions, fit_all, in_order
from transformers import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

import mha2gqa.families
from mha2gqa import shipped
from mha2gqa.families import formulas, outlines, tried
from mha2gqa.families.built import Asked, build
from mha2gqa.families.table import TABLE
from mha2gqa.hosts.choice import HOSTS
from mha2gqa.hosts.shipped import targets
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.latent.sources import ROWS, _layers, source_layers, whole_of
from mha2gqa.targets.latent.widths import Whole

PATH = Path(mha2gqa.families.__file__).with_name("outlines.json")
_MANY = 8
"""Ways to set the switches of a type beyond which only its first classes are built."""


class Family(Keys):
    """A model type, and what was found of it."""

    def data(self) -> dict[str, Any]:
        """Return all that is found."""
        self.find_keys()
        switches = self.switches()
        options = [self.choices.get(key, [False, True]) for key in switches]
        combinations = [dict(zip(switches, one, strict=True)) for one in itertools.product(*options)]
        data: dict[str, Any] = {"default": self.default, **self.said()}
        if len(combinations) > _MANY:
            self.names = self.names[:3]
        data |= Read(self, data["defaults"]).data()
        fitted = {name: self._class(name, combinations) for name in self.names}
        pool = [*{json.dumps(one): one for entry in fitted.values() for one in entry["tensors"]}.values()]
        for entry in fitted.values():
            entry["tensors"] = [pool.index(one) for one in entry["tensors"]]
        attention = sorted({name for entry in fitted.values() for name in entry.pop("attention")})
        data |= {"classes": fitted, "tensors": pool, "attention": attention}
        return data | ({"ships": self._shipping()} if self.model_type in shipped.GROUPED else {})

    def _shipping(self) -> dict[str, Any]:
        """Return the classes of a file that ships, and what `config.json` and adapters are told of it."""
        same = {key: 4 for key in self.sizes if key.endswith("_heads")}  # none has other numbers in its parts
        models = [Architecture(self.config(0, architectures=[name], **same)) for name in self.names]
        layers = [model.attention_layers([(count, 1) for count in model.counts]) for model in models]
        found = [targets(one) for one in layers]
        if any(one != found[0] for one in found):
            raise UnfitError("adapters are told something else of some of its classes")
        classes, autos = shipped.architectures(self.model_type), shipped.auto_map(self.model_type)
        return {"architectures": classes, "auto_map": autos, "targets": found[0]}

    def _class(self, name: str, combinations: list[Config]) -> dict[str, Any]:
        """Fit the tensors of a class."""
        found: dict[tuple[Any, ...], list[Config]] = {}
        first = self.ask(0, architectures=[name])
        before: dict[str, set[str]] = {}
        for combination in combinations:
            asked = [self.ask(point, architectures=[name], **combination) for point in POINTS]
            sizes = [self.sizes_at(point, **combination) for point in POINTS]
            entries = list(fit_all(asked, sizes))
            for entry in entries:
                found.setdefault(entry, []).append(combination)
                before.setdefault(entry[0], set())
            for last, entry in itertools.pairwise(entries):
                before[entry[0]].add(last[0])
        tensors = [
            [pattern, list(shape), kind, places, when]
            for (pattern, shape, kind, places), there in found.items()
            for when in conditions(there, combinations)
        ]
        ordered = in_order(tensors, list(TopologicalSorter(before).static_order()))
        return {
            "prefix": first.prefix,
            "base": first.is_base,
            "norm": first.final_norm,
            "filed": _filed(first),
            "like_llama": self.model_type in ROWS
            and all(self._is_like_llama(point, name, combination) for point in POINTS for combination in combinations),
            "tensors": [[_based(first, one[0]), *one[1:]] for one in ordered],
            "attention": [_based(first, one) for one in attention_modules(first)],
        }

    def _is_like_llama(self, point: int, name: str, combination: Config) -> bool:
        """Return whether what latents need of all layers is as in Llama."""
        config = self.config(point, architectures=[name], **combination)
        model, width = Architecture(config), self.sizes_at(point)["head_dim"]
        if _layers(model):
            return False
        found = whole_of(source_layers(model))
        return found == Whole(config["num_key_value_heads"], width, width, width)


def _filed(asked: Asked) -> dict[str, str] | None:
    """Return the tensors that have another name in a file; None where more becomes of some."""
    names = asked.filed_names()
    renamed = {name: filed for name, filed in names.items() if name != filed}
    is_whole = list(names) == list(asked.module_shapes) or (renamed and names.keys() == asked.module_shapes.keys())
    return renamed if is_whole and not any(re.search(r"\d", name) for name in renamed) else None


def _based(asked: Asked, name: str) -> str:
    """Return a name with a mark in the place of the base model's prefix."""
    prefix = f"{asked.prefix}."
    if asked.is_base:
        return formulas.BASE + name
    return formulas.BASE + name.removeprefix(prefix) if name.startswith(prefix) else name


def check(family: Family, data: dict[str, Any]) -> None:
    """Hold the data against transformers at the last point, and where keys say something else.

    Raises:
        UnfitError: They differ.
    """
    numbers = random.Random(0)  # noqa: S311 (no secret)
    ways = [(None, 0.0), (None, 0.4), (None, 1.0), *((rope, 0.4) for rope in ROPES)]
    few = {*[*data["classes"]][2:]}
    points = [
        (point, name, way) for name in data["classes"] for point in (5, 2) for way in ways[: 3 if name in few else 6]
    ]
    points += [(0, name, (None, -1.0)) for name in data["classes"]]
    alike = {key: 4 for key in family.sizes if key.endswith("heads")}
    for point, name, (rope, share) in points:
        more = (
            alike if share < 0 else {key: numbers.choice(one) for key, one in _tried(data) if numbers.random() < share}
        )
        if rope is not None and data["keys"].get(ROTARY[0]) == "rope":
            more[ROTARY[0]] = rope
        config = family.config(point, architectures=[name], **more)
        config = config if share else family.without(config)
        asked = build.__wrapped__(json.dumps(config))
        said = tried.read_values(config, data)
        if said is None:
            raise UnfitError(f"the data does not cover {config}")
        found: Any = outlines.Outlined(name, data, said, functools.partial(build, json.dumps(config)))
        is_filed = data["classes"][name]["filed"] is None or found.filed_names() == asked.filed_names()
        if facts(found) != facts(asked) or not is_filed:
            raise UnfitError("the data says something else than transformers")
        for key in _answered(data, found):
            if not same(read(asked.config, key), read(found.settings, key)):
                raise UnfitError(f"{key} is {read(asked.config, key)!r}, not {read(found.settings, key)!r}")


def _tried(data: dict[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the keys that may say something else, and what."""
    for key, domain in data["keys"].items():
        if domain in CHECKED and key not in data["sizes"]:
            yield key, CHECKED[domain]
        elif domain in ("activation", "choice"):
            yield key, data["choices"].get(key) or data["activations"]
    yield from ((pair, (False, True)) for pair in data["equal"])


def _answered(data: dict[str, Any], found: Any) -> list[str]:
    """Return the keys that the data knows, those that are not there included."""
    return [*found.settings.known, *data["absent"], *data["optional"]]


def _made(name: str) -> dict[str, Any] | None:
    """Return what is found of a model type; None, and why, where it has no form that the data has."""
    for has_width in (True, False):  # whether a width of heads that a class does not name is read all the same
        try:
            family = Family(name, has_width=has_width)
            data = family.data()
            check(family, data)
        except Exception as reason:  # of every kind: classes refuse sizes in ways of their own
            if not has_width or not wider(name):
                print(f"{name}: {str(reason)[:300]}", flush=True)  # noqa: T201
                return None
        else:
            return data
    return None


def _leave_numbers_alone() -> None:
    """Take no time to initialise tensors that have no numbers."""
    for name in dir(torch.nn.init):
        if name.endswith("_") and not name.startswith("_"):
            setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


def main(names: Sequence[str]) -> None:
    """Make the data, and say what is left out."""
    torch.set_num_threads(1)
    _leave_numbers_alone()
    transformers.logging.set_verbosity(50)  # it says of each refusal what it refuses
    kept = dict(outlines._types()) if names else {}
    outlines._types = dict  # type: ignore[assignment]  # what is asked is transformers
    every = [name for name in dict.fromkeys([*TABLE, *HOSTS]) if name not in TABLE or not TABLE[name].refusal]
    for name in names or every:
        if not (shipped.register(name) or name in CONFIG_MAPPING):
            continue
        kept.pop(name, None)
        data = _made(name)
        if data is None:
            continue
        kept[name] = json.dumps(data | {"tokenizer": TOKENIZER_MAPPING_NAMES.get(name)}, separators=(",", ":"))
        _write(kept)
        print(f"{name}: {len(data['classes'])} classes, {len(data['keys'])} keys", flush=True)  # noqa: T201


def _write(types: Mapping[str, str]) -> None:
    """Write the data, a line for each model type."""
    text = ",\n".join(f"{json.dumps(name)}: {data}" for name, data in sorted(types.items()))
    head = json.dumps({"transformers": transformers.__version__, "generation": GENERATION, "types": {}})
    PATH.write_text(f"{head[:-2]}\n{text}\n}}}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
