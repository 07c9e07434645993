"""What windows would save, and in which class a result would be.

Legend: W tokens of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mha2gqa.errors import Mha2GqaError
from mha2gqa.families.cache import CacheLayer, cache_bytes
from mha2gqa.hosts.windows import choose_host
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.window import windows

_WINDOWS = (1024, 4096, 16384)


@dataclass(frozen=True, kw_only=True)
class WindowRow:
    """What one W on all layers means."""

    window: int
    host: str
    """Model type of the result."""
    bytes_at: dict[int, int]
    """Context length -> bytes of cache of one sequence, with the KV heads that there are."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows that a model can have."""

    rows: list[WindowRow]
    """Shortest first; those that are shorter than what the layers see now."""
    by_layer: str
    """Model type of a result in which some layers keep every token; empty where there is none."""
    refusal: str
    """Why there is no window at all; empty where there is one."""


def possible_windows(model: Architecture, cached: list[CacheLayer], itemsize: int, contexts: Sequence[int]) -> Windows:
    """Return what windows would save."""
    hosts: list[str] = []
    for by_layer in (False, True):
        try:
            found = choose_host(model, by_layer=by_layer)
        except Mha2GqaError as refusal:
            if not by_layer:
                return Windows(rows=[], by_layer="", refusal=str(refusal))
            hosts.append("")
        else:
            hosts.append(found.model_type if found else model.model_type)
    reach = int(getattr(model.text_config, "max_position_embeddings", None) or max(contexts))
    reach = min([reach, *(window for window in windows(model) if window)])
    rows = []
    for window in [one for one in _WINDOWS if one < reach] or [reach // 4, reach // 2]:
        bounded = [replace(layer, window=window) for layer in cached]
        at = {context: cache_bytes(bounded, itemsize, context) for context in contexts}
        rows.append(WindowRow(window=window, host=hosts[0], bytes_at=at))
    return Windows(rows=rows, by_layer=hosts[1], refusal="")
