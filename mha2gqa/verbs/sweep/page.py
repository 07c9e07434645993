"""A `Sweep` as a page: which conversion to take first, then the frontier, every point, and the single layers.

Words are `sweeping/wording.py`'s, plots `sweep_figures.py`'s; the template `sweep.html` places them.
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

from mha2gqa.pages.page import render
from mha2gqa.units import format_size
from mha2gqa.verbs.sweep import figures as sweep_figures
from mha2gqa.verbs.sweep import words as wording
from mha2gqa.verbs.sweep.outcome import Sweep


class Tile(NamedTuple):
    """One of the few numbers at the top."""

    name: str
    before: str
    value: str
    note: str


def sweep_page(sweep: Sweep) -> str:
    """Return the page of a sweep, as HTML that needs no other file."""
    header, layers = wording.layer_table(sweep)
    chosen = sweep.recommended
    return render(
        "sweep.html",
        name=sweep.name,
        headline=f"G = {chosen.groups}, {chosen.way}" if chosen else "No conversion is within the limit",
        found=chosen is not None,
        verdict=wording.verdict(sweep),
        command=chosen.command if chosen else "",
        tiles=list(_tiles(sweep)),
        text=wording.evaluated(sweep),
        plot=sweep_figures.frontier(sweep),
        header=wording.HEADER,
        rows=wording.point_rows(sweep),
        layer_plot=sweep_figures.single_layers(sweep),
        layer_header=header,
        layers=layers,
        facts=list(_facts(sweep)),
        version=version("mha2gqa"),
    )


def _tiles(sweep: Sweep) -> Iterator[Tile]:
    if (one := sweep.recommended) is None:
        return
    before, after = one.measured.loss.perplexities
    note = f"a token; {100 * one.cache / max(1, sweep.cache):.4g}% of the original"
    yield Tile("KV cache", format_size(sweep.cache), format_size(one.cache), note)
    yield Tile("Perplexity", f"{before:.4g}", f"{after:.4g}", f"{one.measured.loss.increase:+.2%}")
    yield Tile("Same most likely token", "", f"{one.measured.top1:.2%}", "")
    yield Tile("KL divergence", "", f"{one.measured.kl:.3g}", "nats a token, mean")


def _facts(sweep: Sweep) -> Iterator[tuple[str, str]]:
    yield "model", sweep.model
    yield "family", sweep.model_type
    yield "KV heads", str(sweep.heads)
    yield "limit", f"perplexity at most {sweep.max_ppl_increase:+.2%}"
    for name, value in sweep.settings.items():
        if name not in ("model", "files") and value not in (None, [], ""):
            parts = (f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else None
            listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield name.replace("_", " "), ", ".join(parts) if parts else listed
