"""What the user can ask of each command: frozen, keyword-only, one sentence a field.

No torch here: the command line builds these before anything heavy is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Grouping = Literal["contiguous"]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `convert`."""

    model: str | None = None
    """Local directory or Hub id (`org/name`, `org/name@revision`); None is the reference checkpoint."""
    groups: int
    """KV heads of the result, G."""
    output: Path | None = None
    """Directory to create; None is `./<name>-gqa<G>`, or `./<name>-mqa` for one group."""
    method: str = "mean"
    """How the KV heads of a group become one; a name in `merging.METHODS`."""
    grouping: Grouping = "contiguous"
    """Which KV heads share a group."""
    seed: int = 0
    """Seed of the methods that draw numbers."""
    max_shard_size: str | None = None
    """Largest weight file, for example `5GB`; None keeps the source's division into files."""
    force: bool = False
    """Replace an output that an earlier run made."""
    dry_run: bool = False
    """Plan and check, write nothing."""


@dataclass(frozen=True, kw_only=True)
class ExpandOptions:
    """Options of `expand`."""

    model: str
    """Local directory or Hub id of a GQA or MQA checkpoint."""
    heads: int | None = None
    """KV heads of the result; None is one per query head (MHA)."""
    output: Path
    """Directory to create."""
    max_shard_size: str | None = None
    """Largest weight file, for example `5GB`; None keeps the source's division into files."""
    force: bool = False
    """Replace an output that an earlier run made."""
    dry_run: bool = False
    """Plan and check, write nothing."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `inspect`."""

    model: str | None = None
    """Local directory or Hub id; None is the reference checkpoint."""
