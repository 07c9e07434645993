"""What can be asked of `inspect`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `inspect`."""

    model: str | None = None
    """Local directory or Hub id; None is the reference checkpoint."""
