"""The facts of a conversion: what was done to a checkpoint. One class, from the plan to the record and every page.

`Outcome` is what `convert` and `expand` return: those facts, and what the run that made it has to say besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mha2gqa.heads.grouping import Groups
from mha2gqa.methods import AUTO, AUTO_METHOD
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets import TARGETS
from mha2gqa.targets.target import Change, Effect


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was done."""

    command: str
    """`convert` or `expand`."""
    options: Mapping[str, Any]
    """The options of the command that change the result, by their names on the command line."""
    targets: tuple[str, ...]
    """What attention became: names in `TARGETS`."""
    model_type: str
    """Of the result."""
    rehosted_from: str | None = None
    """Model type of the original, where the result is of another."""
    change: Change
    config_changes: list[dict[str, Any]]
    """Path, value before and value after of each key of config.json."""
    groups: Mapping[str, Groups]
    """Attention module -> the original's heads of each KV head of the result."""
    dropped: tuple[str, ...]
    """Tensors of the original that the result does not have."""
    text: str | None = None
    """Where calibration text came from."""
    layers: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """What a layer method did to each attention module: groups, freedom of keys and values, errors after each step."""
    trials: list[Mapping[str, Any]] = field(default_factory=list)
    """What was tried, and what it loses; of `--method auto` the one with the least loss is the result."""
    divergence: tuple[float, float] | None = None
    """From the original in nats a token on text kept aside, before and after `joint` trained all layers together."""
    notes: list[str] = field(default_factory=list)
    """What else is to be known of the result, as sentences."""
    uptrain: list[Mapping[str, Any]] = field(default_factory=list)
    """Each training that followed: what it was and what it won."""

    @property
    def asks_for_heads(self) -> bool:
        """Whether a number of KV heads was asked for, be it that of the original: a method goes with that alone."""
        return not {"kv_heads", "heads_by_layer"}.isdisjoint(self.targets)

    @property
    def method(self) -> str | None:
        """How the heads of a group became one, as asked for; None where nothing was merged."""
        return self.options.get("method")

    @property
    def refinement(self) -> str | None:
        """How layers were improved on text: as asked for, or as `auto` chose."""
        is_chosen = self.method == AUTO and self.trials
        tried = min(self.trials, key=lambda trial: trial["loss"]) if is_chosen else self.options
        refine: str | None = tried.get("refine")
        return refine

    @property
    def way(self) -> str | None:
        """The method and, where layers were improved on text, how: `aligned, distil`; None where nothing was merged."""
        method = f"{AUTO}: {AUTO_METHOD}" if self.method == AUTO and self.trials else self.method
        return ", ".join(filter(None, (method, self.refinement))) or None

    @property
    def layer_errors(self) -> dict[str, Mapping[str, float]]:
        """Attention module -> step (`merged`, `refit`, `distil`) -> squared error of its output, where it was refined.

        On batches of the text that were kept aside, as a share of the output's energy.
        """
        return {layer["module"]: layer["errors"] for layer in self.layers if layer["errors"]}

    @property
    def trainings(self) -> tuple[str, ...]:
        """Each training that followed: what trained, by which objective, for how many steps."""
        return tuple(f"{run['train']}, {run['objective']}, {run['length']['steps']:,} steps" for run in self.uptrain)

    @property
    def effect(self) -> Effect:
        """What all of it does to the outputs."""
        if self.uptrain:
            return "loss"
        if self.change.is_any:
            return self.change.effect
        return "none" if self.rehosted_from is None else "rounding"

    @property
    def family(self) -> str:
        """The model type, and that of the original where it was another."""
        return f"{self.rehosted_from} written as {self.model_type}" if self.rehosted_from else self.model_type

    def found(self, model: Architecture) -> dict[str, Any]:
        """Return what a model has of that which was changed: name of a fact -> value."""
        paths = {tuple(change["path"]) for change in self.config_changes}
        return {name: value for target in self.targets for name, value in TARGETS[target].found(model, paths).items()}

    def recorded(self) -> dict[str, Any]:
        """Return the facts as the record keeps them."""
        content = {name: getattr(self, name) for name in _KEPT}
        return content | self.change.recorded()


_KEPT = (
    *("command", "options", "targets", "model_type", "config_changes", "groups", "dropped", "text", "layers"),
    *("trials", "notes", "uptrain", "divergence", "rehosted_from"),
)
_TYPES = {"method": str, "grouping": str, "refine": str, "seed": int}


@dataclass(frozen=True, kw_only=True)
class Outcome(Conversion):
    """A conversion, and what the run that made it has to say."""

    source: str
    """Hub id or directory."""
    output: Path
    written: bool
    """False after a dry run."""
    cache_before: int
    """Bytes of KV cache a token, in the dtype of the weights."""
    cache_after: int
    bytes_read: int
    bytes_written: int
    files: Mapping[str, int]
    """Weight file -> bytes."""
    companions: list[str]
    """Other files that are copied: tokenizer, templates, code."""
    left_behind: list[str]
    """What lies beside the source and is not copied, because nothing tells that it belongs; folders end in a slash."""
    taken_off: list[str]
    """What was taken off the source: prefixes of wrappers in its names, keys of its config that no tensor bears out."""
    added: list[str]
    """Files that the source does not have: the code of a class that ships, or a tokenizer in another form."""
    tensors: list[dict[str, Any]] = field(repr=False)
    """Name, dtype, shape before and after, and whether it is changed, recomputed for a host, copied or dropped."""
    recomputed: tuple[str, ...]
    """Tensors that were computed for another class, one name for all layers."""
    cache_at: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Tokens -> bytes of their KV cache before and after, where a window bounds it."""
    seconds: float = 0.0
    """Of writing; reading headers and planning come before."""
    pushed: str | None = None
    """Address of the repository that it was uploaded to."""

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values."""
        content = {name: getattr(self, name) for name in _REPORTED}
        return content | self.change.numbers() | {"output": str(self.output)}


_REPORTED = (
    *("command", "source", "output", "written", "model_type", "method", "cache_before", "cache_after", "bytes_read"),
    *("bytes_written", "config_changes", "files", "companions", "tensors", "seconds", "text", "layers", "trials"),
    *("way", "divergence", "rehosted_from", "added", "left_behind", "taken_off", "notes", "cache_at", "pushed"),
)


def parse_conversion(content: Mapping[str, Any]) -> Conversion:
    """Return the facts that a record keeps; those of records without `targets` follow from the command.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It keeps none that this version knows.
    """
    command, options = str(content["command"]), _parse_options(content["options"])
    targets = tuple(map(str, content.get("targets") or ("expand" if command == "expand" else "kv_heads",)))
    if len({*targets}) < len(targets):
        raise ValueError(f"{len(targets)} targets, of which some stand twice")
    if ("expand" in targets) != (command == "expand"):
        raise ValueError(f"command {command!r} with targets {', '.join(targets)}")
    if "kv_heads" in targets:
        options = {"groups": int(content["target_heads"])} | options
    groups = {module: tuple(tuple(map(int, group)) for group in found) for module, found in content["groups"].items()}
    return Conversion(
        command=command,
        options=options,
        targets=targets,
        model_type=str(content["model_type"]),
        rehosted_from=_optional(content.get("rehosted_from")),
        change=Change.joined([TARGETS[name].parse_change(content) for name in targets]),
        config_changes=[
            {"path": _parse_path(change["path"]), "before": change["before"], "after": change["after"]}
            for change in content["config_changes"]
        ],
        groups=groups,
        dropped=tuple(map(str, content["dropped"])),
        text=_optional(content.get("text")),
        layers=[_parse_layer(layer) for layer in content.get("layers", [])],
        trials=[_parse_trial(trial) for trial in content.get("trials", [])],
        divergence=_parse_divergence(content.get("divergence")),
        notes=[str(note) for note in content.get("notes", [])],
        uptrain=[_parse_training(entry) for entry in content.get("uptrain", [])],
    )


def _parse_options(content: Any) -> dict[str, Any]:
    """Return the options, of which those that decide how heads are made again are of the type that they have."""
    options = dict(content)
    for name, kind in _TYPES.items():
        if not isinstance(options.get(name), kind | None):
            raise TypeError(f"the option {name!r} is {options[name]!r}")
    return options


def _parse_path(content: list[Any]) -> tuple[str, ...]:
    if not content:
        raise ValueError("a change of no key")
    return tuple(map(str, content))


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)


def _parse_layer(content: dict[str, Any]) -> dict[str, Any]:
    errors = {str(step): float(error) for step, error in content["errors"].items()}
    return content | {"module": str(content["module"]), "errors": errors}


def _parse_training(content: dict[str, Any]) -> dict[str, Any]:
    length = content["length"] | {"steps": int(content["length"]["steps"])}
    return content | {"train": str(content["train"]), "objective": str(content["objective"]), "length": length}


def _parse_trial(content: dict[str, Any]) -> dict[str, Any]:
    read = {"loss": float(content["loss"]), "increase": float(content["increase"])}
    return content | {"refine": _optional(content["refine"])} | read


def _parse_divergence(content: list[Any] | None) -> tuple[float, float] | None:
    if content is None:
        return None
    before, after = map(float, content)
    return before, after
