"""What latent attention would save: at the cache of each G, and at the width that MLA kernels take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mha2gqa.errors import Mha2GqaError
from mha2gqa.families.cache import cache_bytes
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.latent.aim import divisions, planned_key
from mha2gqa.targets.latent.config import elsewhere
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.widths import KERNELS, Widths

_PRESET = (512, 64)
"""C and R of DeepSeek's own models."""


@dataclass(frozen=True, kw_only=True)
class LatentRow:
    """What one cache of latent attention means."""

    groups: int | None
    """G of as large a cache; None for a width of its own."""
    numbers: int
    """C + R: numbers a token and layer."""
    rope_widths: list[int]
    """R that are tried; one where there is no choice."""
    bytes_per_token: int
    kernels: bool
    """Whether the MLA kernels of vLLM take it."""


def latent_rows(model: Architecture, groups: Sequence[int], itemsize: int) -> tuple[list[LatentRow], str]:
    """Return the rows, the largest cache first, and why there are none, or what runs them.

    Args:
        model: The original.
        groups: G whose caches are of interest.
        itemsize: Bytes of a number.
    """
    try:
        source = LatentSource.of(model)
    except Mha2GqaError as refusal:
        return [], refusal.problem
    rows = sorted(_rows(source, groups, itemsize), key=lambda row: row.numbers, reverse=True)
    if not rows:
        return [], "No latent is narrower than its cache."
    host = _host(source, Widths(groups=min(groups)))
    reasons = elsewhere(model.blueprint, host.shape, host.key)
    return rows, f"Only transformers would run it: {'; '.join(reasons)}." if reasons else ""


def _rows(source: LatentSource, groups: Sequence[int], itemsize: int) -> Iterator[LatentRow]:
    asked = [Widths(groups=count) for count in groups]
    for one in [*asked, Widths(latent=_PRESET[0], rope_width=_PRESET[1])]:
        try:
            possible = divisions(source, one)
        except Mha2GqaError:  # wider than what there is, or not to be divided
            continue
        yield LatentRow(
            groups=one.groups,
            numbers=sum(possible[0]),
            rope_widths=[width for _, width in possible],
            bytes_per_token=cache_bytes(_host(source, one).model.cached, itemsize),
            kernels=sum(possible[0]) in KERNELS,
        )


def _host(source: LatentSource, widths: Widths) -> LatentHost:
    latent, width = divisions(source, widths)[0]
    return LatentHost(source, planned_key(source, widths, width), latent)
