"""Fits what transformers reads of a config."""

import json
from typing import Any

from outline_answers import ABSENT, facts, plain, read, read_config, same
from outline_keys import Keys
from outline_points import POINTS, READ
from outline_tensors import Config, UnfitError

from mha2gqa.errors import Mha2GqaError
from mha2gqa.families import formulas, tried
from mha2gqa.families.built import build


class Read:
    """Fits what is read of a config."""

    def __init__(self, keys: Keys, defaults: Config) -> None:
        self.keys = keys
        configs = [keys.config(point) for point in POINTS]
        configs += [keys.without(one) for one in configs[:3]]
        self._configs = [{**defaults, **config} for config in configs]
        self._asked = [build.__wrapped__(json.dumps(config)) for config in configs]
        self._found: dict[str, Any] = {
            "filled": {},
            "fixed": {},
            "taken": {},
            "computed": [],
            "made": [],
            "unread": [],
            "absent": [],
            "optional": [],
            "cycle": None,
            "theta": None,
            "turned": None,
        }

    def data(self) -> dict[str, Any]:
        """Return what is found.

        Raises:
            UnfitError: Something has no form.
        """
        for key in dict.fromkeys([*READ, *self.keys.fields]):
            key = self.keys.aliases.get(key, key)
            if key in self.keys.moved:
                continue
            pairs = [(config, read(one.config, key)) for config, one in zip(self._configs, self._asked, strict=True)]
            if all(value is ABSENT for _, value in pairs):
                self._found["absent"].append(key)
            elif any(value is ABSENT for _, value in pairs):
                is_said = all(
                    same(config[key], value) if config.get(key) else value is ABSENT for config, value in pairs
                )
                self._found["optional" if is_said else "unread"].append(key)
            elif not self._is_fitted(key, pairs):
                self._found["unread"].append(key)
        self._take()
        self._settle_switches()
        if "layer_types" in self.keys.fields and self._found["cycle"] is None:
            raise UnfitError("its kinds of layers follow no cycle")
        if lost := [key for key in self._found["unread"] if "head_dim" in key or key == "d_kv"]:
            raise UnfitError(f"the widths of its heads have no form: {', '.join(lost)}")
        self._found["unread"] = [key for key in dict.fromkeys(self._found["unread"]) if key in self.keys.fields]
        return self._found

    def _is_fitted(self, key: str, pairs: list[tuple[Config, Any]]) -> bool:
        """Fit one key that is read of a config; return whether that was possible."""
        values = [value for _, value in pairs]
        if key == "rope_parameters" and key in self.keys.fields:
            return self._is_rotation(pairs)
        if key == "layer_types":
            self._found["cycle"] = _cycle(values)
            self._found["made"] += [key] if self._found["cycle"] else []
            return self._found["cycle"] is not None
        if all(same(config.get(key), value) for config, value in pairs):
            return True
        if len({*map(repr, values)}) == 1 and plain(values[0]) is not ABSENT:
            self._found["fixed"][key] = values[0]
            return True
        formula = self._formula(key, pairs)
        if formula and key in self.keys.fields:
            self._found["filled"][key] = formula
        elif formula and key == "head_dim":
            self._found["computed"].append(key)
        return formula is not None and key in (*self.keys.fields, "head_dim")

    def _is_rotation(self, pairs: list[tuple[Config, Any]]) -> bool:
        theta = getattr(self.keys.class_, "default_theta", None)
        value = pairs[0][1]
        turned = value.get("partial_rotary_factor") if isinstance(value, dict) else None
        known = [
            tried.rope_parameters(config, {"theta": theta, "turned": turned, "rotation": self.keys.rotation})
            for config, _ in pairs
        ]
        is_plain = isinstance(theta, float | int) and known == [{"rope_parameters": one} for _, one in pairs]
        self._found |= {"theta": theta, "turned": turned, "made": ["rope_parameters"]} if is_plain else {}
        return is_plain

    def _formula(self, key: str, pairs: list[tuple[Config, Any]]) -> str | None:
        """Return what is read in the place of None."""
        names = {name: self.keys.aliases.get(name, name) for name in ("num_attention_heads", "hidden_size")}
        heads, hidden = names.values()
        for formula in (heads, f"{hidden}//{heads}", hidden, f"4*{hidden}", "num_layers"):
            if all(same(_fill(config, key, formula), value) for config, value in pairs):
                return formula
        return None

    def _take(self) -> None:
        """Find what tensors have in the place of a size that is None, and read so."""
        names = [key for key in self.keys.sizes if self.keys.fields[key] is None and key not in self._found["filled"]]
        heads = self.keys.aliases.get("num_attention_heads", "num_attention_heads")
        hidden = self.keys.aliases.get("hidden_size", "hidden_size")
        for key in [name for name in names if name != "head_dim"]:
            own = key.replace("key_value", "attention").replace("cross", "decoder")
            for formula in (f"4*{hidden}", own if own in self.keys.sizes else heads):
                if self._is_taken(key, formula):
                    self._found["taken"][key] = formula
                    break

    def _settle_switches(self) -> None:
        """Find which switches and activations are read as the class has them whatever a config says."""
        domains = {key: domain for key, domain in self.keys.keys.items() if key in self.keys.fields}
        for key in [one for one, domain in domains.items() if domain in ("switch", "activation")]:
            default = self.keys.fields[key]
            other = not default if domains[key] == "switch" else "relu"
            config = read_config(self.keys.config(0, **{key: other}))
            if other != default and read(config, key) == default:
                self._found["fixed"][key] = default

    def _is_taken(self, key: str, formula: str) -> bool:
        config = self.keys.config(0, architectures=[self.keys.main])
        number = formulas.quotient(formula, config)
        try:
            asked = [build.__wrapped__(json.dumps({**config, key: one})) for one in (None, number)]
        except Mha2GqaError:
            return False
        return bool(facts(asked[0]) == facts(asked[1]))


def _fill(config: Config, key: str, formula: str) -> Any:
    return config[key] if config.get(key) is not None else formulas.quotient(formula, config)


def _cycle(lists: list[list[str]]) -> list[str] | None:
    longest = max(lists, key=len)
    for length in range(1, 9):
        cycle = (longest + longest[:1] * 8)[:length]
        if all([cycle[layer % length] for layer in range(len(one))] == one for one in lists):
            return cycle
    return None
