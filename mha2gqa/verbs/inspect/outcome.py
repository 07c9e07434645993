"""What `inspect` returns: facts about a checkpoint, and what each number of KV heads would mean."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """What one G means."""

    groups: int
    bytes_per_token: int
    cross_bytes_per_token: int
    """Bytes of cache of cross-attention that a token of the encoder takes; 0 without cross-attention."""
    bytes_at: dict[int, int]
    """Context length -> bytes of cache of one sequence."""
    tensor_parallel: list[int]
    """Tensor-parallel sizes that divide both the query heads and G."""


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """Report of `inspect`."""

    source: str
    model_type: str
    architecture: str
    dtype: str
    layers: int
    """Self-attention layers with a KV cache; 0 in an encoder."""
    cross_layers: int
    """Layers whose cache holds the keys and values of an encoder's tokens."""
    query_heads: int
    kv_heads: int
    """KV heads; the largest number, where layers differ; 0 for latent attention."""
    head_width: int | None
    """Width of one key head; None for latent attention and where layers differ."""
    latent: bool
    parameters: int
    parameters_by_role: dict[str, int]
    layer_kinds: list[dict[str, int]]
    """Distinct layers: how many there are (`layers`), and their parameters by role."""
    rows: list[GroupRow]
    """Largest G first; the first row is the checkpoint as it is."""
    verdict: str
    """What `convert` would do, or why it would refuse."""
    convertible: bool
    hosts: dict[int, str]
    """G -> model type of the result, where the model's own class knows only MHA; empty elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)
