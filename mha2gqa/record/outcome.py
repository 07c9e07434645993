"""What `convert` and `expand` return: facts, for people to be told and for programs to read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mha2gqa.files.pieces import OutputTensor
from mha2gqa.record.conversion import Conversion
from mha2gqa.targets.plan import Plan


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
    added: list[str]
    """Files that the source does not have: the code of a class that ships, or a tokenizer in another form."""
    tensors: list[dict[str, Any]] = field(repr=False)
    """Name, dtype, shape before and after, and whether it is changed, recomputed for a host, copied or dropped."""
    recomputed: tuple[str, ...]
    """Tensors that were computed for another class, one name for all layers."""
    seconds: float = 0.0
    """Of writing; reading headers and planning come before."""

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values."""
        content = {name: getattr(self, name) for name in _REPORTED}
        return content | self.change.numbers() | {"output": str(self.output)}


_REPORTED = (
    *("command", "source", "output", "written", "model_type", "method", "cache_before", "cache_after", "bytes_read"),
    *("bytes_written", "config_changes", "files", "companions", "tensors", "seconds", "text", "layers", "trials"),
    *("way", "divergence", "rehosted_from", "added"),
)


def tensor_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return what happens to each tensor: name, action, dtype, shape before and after."""
    before = plan.original.infos
    rows = [
        {
            "name": tensor.name,
            "action": _action(plan, tensor),
            "dtype": tensor.dtype,
            "before": before[tensor.name].shape if tensor.name in before else None,
            "after": tensor.shape,
        }
        for tensor in plan.tensors
    ]
    dropped = (*(before[name] for name in plan.pieces.dropped), *plan.original.origin.dropped)
    return rows + [
        {"name": info.name, "action": "dropped", "dtype": info.dtype, "before": info.shape, "after": None}
        for info in dropped
    ]


def _action(plan: Plan, tensor: OutputTensor) -> str:
    if not tensor.is_copy:
        return "changed"
    return "recomputed" if tensor.name in plan.original.origin.recomputed else "copied"
