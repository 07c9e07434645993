"""A `Sweep` as a page: which conversion to take first, then the frontier, every point, and the single layers.

Words are `words.py`'s; the template `sweep.html` places them. The plots are the frontier of cache against
loss, and the loss that each layer alone adds; `pages/figures.py` has their style.
"""

import math
from collections.abc import Iterator
from importlib.metadata import version

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from mha2gqa.methods import METHODS
from mha2gqa.pages.figures import BAD, CONVERTED, INK, MUTED, ORIGINAL, Plot, drawing, legend
from mha2gqa.pages.page import render
from mha2gqa.units import format_size
from mha2gqa.verbs.sweep import words
from mha2gqa.verbs.sweep.outcome import Point, Sweep
from mha2gqa.verbs.verify.page import Tile

_MARKS = "osD^vPXd"
_WIDE = 7.5
"""Inches: names stand beside the points."""


def sweep_page(sweep: Sweep) -> str:
    """Return the page of a sweep, as HTML that needs no other file."""
    header, layers = words.layer_table(sweep)
    chosen = sweep.recommended
    return render(
        "sweep.html",
        name=sweep.name,
        headline=f"G = {chosen.heads}, {chosen.way}" if chosen else "No conversion is within the limit",
        found=chosen is not None,
        verdict=words.verdict(sweep),
        command=chosen.command if chosen else "",
        tiles=list(_tiles(sweep)),
        text=words.evaluated(sweep),
        plot=frontier(sweep),
        header=words.HEADER,
        rows=words.point_rows(sweep),
        layer_plot=single_layers(sweep),
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


def frontier(sweep: Sweep) -> Plot | None:
    """Plot the loss of every point against its cache, the frontier as a line, the recommended one in a ring."""
    points = [one for one in sweep.points if math.isfinite(one.measured.loss.converted)]
    if not points:
        return None
    original = points[0].measured.loss.original
    described = ", ".join(f"G = {one.heads} by {one.way} {one.measured.loss.converted:.3f}" for one in sweep.frontier)
    with drawing("frontier", f"Loss against cache; on the frontier: {described}.", width=_WIDE, height=4.2) as plot:
        axes = plot.axes
        axes.axhline(original + math.log1p(sweep.max_ppl_increase), color=BAD, linestyle=":", lw=1.2)
        axes.plot([sweep.cache], [original], "*", color=ORIGINAL, markersize=11, label="original")
        steps = sweep.frontier
        axes.plot(
            [one.cache for one in steps], [one.measured.loss.converted for one in steps], color=MUTED, lw=1.2, zorder=1
        )
        _draw_points(axes, points)
        if chosen := sweep.recommended:
            place = ([chosen.cache], [chosen.measured.loss.converted])
            axes.plot(*place, "o", color=INK, fillstyle="none", markersize=13, markeredgewidth=1.4)
            axes.annotate("recommended", (place[0][0], place[1][0]), (-12, 8), textcoords="offset points", ha="right")
        _set_axes(axes, sweep, points)
        legend(axes)
    caption = "Down and to the left is better. No point beats those on the line in both; the dotted line is the limit."
    return Plot("Cache against loss", caption, plot.svg)


def _draw_points(axes: Axes, points: list[Point]) -> None:
    ways = list(dict.fromkeys(one.way for one in points))
    for number, way in enumerate(ways):
        of_way = [one for one in points if one.way == way]
        axes.plot(
            [one.cache for one in of_way],
            [one.measured.loss.converted for one in of_way],
            _MARKS[number % len(_MARKS)],
            color=_colour(of_way[0].method, of_way[0].refine),
            markersize=6.5,
            label=way,
        )


def _colour(method: str, refine: str | None) -> str:
    """Return the colour of a way: poolings stand back, what is refined stands out; the marks tell the rest apart."""
    if refine is not None:
        return INK
    return MUTED if method in METHODS and METHODS[method].streams else CONVERTED


def _set_axes(axes: Axes, sweep: Sweep, points: list[Point]) -> None:
    heads = {one.cache: "" if one.window or one.by_layer else f"\nG = {one.groups}" for one in points}
    heads[sweep.cache] = f"\nG = {sweep.heads}"
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(heads), [f"{100 * cache / sweep.cache:.3g}%{named}" for cache, named in heads.items()])
    axes.set(xlabel="KV cache a token, of the original's", ylabel="loss (nats a token)")


def single_layers(sweep: Sweep) -> Plot | None:
    """Plot the loss that each attention module adds when it alone is converted, a line for each method."""
    if not sweep.layers:
        return None
    columns = list(dict.fromkeys((one.method, one.groups) for one in sweep.layers))
    worst = max(sweep.layers, key=lambda one: one.measured.loss.difference)
    text = f"{worst.module}, {worst.method}: {worst.measured.loss.difference:+.4f} nats a token"
    with drawing("layers", f"Loss that each layer adds alone; the largest is {text}.", width=_WIDE) as plot:
        for number, (method, groups) in enumerate(columns):
            losses = [
                one.measured.loss.difference for one in sweep.layers if (one.method, one.groups) == (method, groups)
            ]
            style = f"{_MARKS[number % len(_MARKS)]}-"
            plot.axes.plot(losses, style, color=_colour(method, None), label=f"{method}, G = {groups}")
        plot.axes.set(xlabel="attention module, first to last", ylabel="loss added (nats a token)")
        plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(plot.axes)
    return Plot("Loss that each layer adds alone", f"Largest in {text}.", plot.svg)
