"""What latent attention would save: at the cache of each G, and at the width that MLA kernels take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mha2gqa.errors import Mha2GqaError
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.latent.sources import elsewhere, has_bias, whole
from mha2gqa.targets.latent.widths import KERNELS, Whole, Widths, divisions

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
        cached = whole(model)
    except Mha2GqaError as refusal:
        return [], refusal.problem
    layers = int(model.settings.num_hidden_layers)
    rows = sorted(_rows(cached, groups, layers * itemsize), key=lambda row: row.numbers, reverse=True)
    if not rows:
        return [], "No latent is narrower than its cache."
    reasons = elsewhere(model.blueprint, has_bias=has_bias(model.blueprint), has_free_key=False)
    return rows, f"vLLM and llama.cpp would not run it: {'; '.join(reasons)}." if reasons else ""


def _rows(cached: Whole, groups: Sequence[int], size: int) -> Iterator[LatentRow]:
    asked = [Widths(groups=count) for count in groups]
    for one in [*asked, Widths(latent=_PRESET[0], rope_width=_PRESET[1])]:
        try:
            possible = divisions(cached, one)
        except Mha2GqaError:  # wider than what there is, or not to be divided
            continue
        numbers = sum(possible[0])
        yield LatentRow(
            groups=one.groups,
            numbers=numbers,
            rope_widths=[width for _, width in possible],
            bytes_per_token=numbers * size,
            kernels=numbers in KERNELS,
        )
