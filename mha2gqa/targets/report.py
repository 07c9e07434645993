"""What `convert` and `expand` return: facts, for the console to print and for programs to read.

Numbers and names only; `console.py` words them.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mha2gqa.families.blueprint import blueprint
from mha2gqa.families.cache import cache_bytes, cache_layers
from mha2gqa.families.counts import find_counts
from mha2gqa.files.pieces import OutputTensor
from mha2gqa.files.reader import Checkpoint
from mha2gqa.targets.plan import Plan


@dataclass(frozen=True, kw_only=True)
class ChangeReport:
    """Report of `convert` or `expand`."""

    command: str
    source: str
    """Hub id or directory."""
    output: Path
    written: bool
    """False after a dry run."""
    model_type: str
    method: str | None
    heads_before: int
    heads_after: int
    cache_before: int
    """Bytes of KV cache a token, in the dtype of the weights."""
    cache_after: int
    bytes_read: int
    bytes_written: int
    config_changes: list[dict[str, Any]]
    files: dict[str, int]
    """Weight file -> bytes."""
    companions: list[str]
    """Other files that are copied: tokenizer, templates, code."""
    tensors: list[dict[str, Any]] = field(repr=False)
    """Name, dtype, shape before and after, and whether it is changed, recomputed for a host, copied or dropped."""
    seconds: float
    """Of writing; reading headers and planning come before."""
    text: str | None = None
    """Where calibration text came from."""
    layers: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """What a layer method did to each attention module: groups, freedom of keys and values, errors after each step."""
    trials: list[Mapping[str, Any]] = field(default_factory=list)
    """What `--method auto` tried."""
    way: str | None = None
    """The method and, where layers were improved on text, how: `aligned, distil`."""
    divergence: tuple[float, float] | None = None
    """From the original in nats a token on text kept aside, before and after `joint` trained all layers together."""
    rehosted_from: str | None = None
    """Model type of the source, where the result is of another, `model_type`."""
    added: list[str] = field(default_factory=list)
    """Files that the source does not have: the code of a class that ships, or a tokenizer in another form."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self) | {"output": str(self.output)}


def cache_per_token(config: dict[str, Any], tensors: tuple[OutputTensor, ...]) -> int:
    """Return the bytes of KV cache a token, in the dtype that most of the weights have."""
    plan = blueprint(config)
    sizes: dict[int, int] = {}
    for tensor in tensors:
        itemsize = tensor.size // max(1, tensor.parameters)
        sizes[itemsize] = sizes.get(itemsize, 0) + tensor.size
    return cache_bytes(cache_layers(config, plan, find_counts(config, plan)), max(sizes, key=lambda size: sizes[size]))


def tensor_rows(checkpoint: Checkpoint, plan: Plan) -> list[dict[str, Any]]:
    """Return what happens to each tensor: name, action, dtype, shape before and after."""
    before = {info.name: info for info in checkpoint.tensors}
    unused = checkpoint.rehosted.dropped if checkpoint.rehosted else ()
    rows = [
        {
            "name": tensor.name,
            "action": _action(checkpoint, tensor),
            "dtype": tensor.dtype,
            "before": before[tensor.name].shape if tensor.name in before else None,
            "after": tensor.shape,
        }
        for tensor in plan.tensors
    ]
    dropped = (*(before[name] for name in plan.dropped), *unused)
    return rows + [
        {"name": info.name, "action": "dropped", "dtype": info.dtype, "before": info.shape, "after": None}
        for info in dropped
    ]


def recomputed_kinds(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the tensors that were recomputed for another class, one name with `*` for all layers."""
    names = checkpoint.rehosted.recomputed if checkpoint.rehosted else ()
    kinds = (re.sub(r"\.\d+\.", ".*.", info.name) for info in checkpoint.tensors if info.name in names)
    return tuple(dict.fromkeys(kinds))


def _action(checkpoint: Checkpoint, tensor: OutputTensor) -> str:
    if not tensor.is_copy:
        return "changed"
    is_recomputed = checkpoint.rehosted is not None and tensor.name in checkpoint.rehosted.recomputed
    return "recomputed" if is_recomputed else "copied"
