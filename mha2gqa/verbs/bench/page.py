"""A `BenchReport` as a page: the few numbers that matter first, then the plots, then every row.

Words and rows are those of `words.py`; the template places them. A plot is None where there is nothing to plot; no
number is computed here that the report does not hold.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from matplotlib.axes import Axes

from mha2gqa.pages.figures import CONVERTED, INK, MUTED, ORIGINAL, Plot, drawing, legend
from mha2gqa.pages.page import render
from mha2gqa.units import format_size
from mha2gqa.verbs.bench.outcome import BenchReport, Decode
from mha2gqa.verbs.bench.words import caches, facts, notes, tables
from mha2gqa.verbs.verify.page import Tile

_MARKERS = "os^Dv"
_ROW = 0.3
"""Inches of a row."""


def bench_page(report: BenchReport) -> str:
    """Return the page of a measurement, as HTML that needs no other file."""
    plots = (ratio_by_point(report), step_by_context(report))
    return render(
        "bench.html",
        report=report,
        tiles=list(_tiles(report)),
        facts=list(facts(report)),
        tables=list(tables(report)),
        notes=list(notes(report)),
        plots=[plot for plot in plots if plot],
        version=version("mha2gqa"),
    )


def _tiles(report: BenchReport) -> Iterator[Tile]:
    for one in caches(report):
        note = f"a {one.token}; {one.share:.1%} of the original"
        yield Tile(one.name, format_size(one.before), format_size(one.after), note)
    if report.decode:
        row = max(report.decode, key=lambda row: (row.batch * row.context, row.ratio.median))
        note = f"batch {row.batch}, {report.context_name} {row.context}, {row.cache} cache"
        yield Tile("Decode, times as fast", "", f"{row.ratio.median:.2f}", note)
        note = f"by which it can be {row.limit:.2f} times as fast"
        before, after = map(format_size, row.step_bytes)
        yield Tile("Bytes of that step", before, after, note)
    if report.fits:
        fit = report.fits[-1]
        note = f"{report.context_name} {fit.context}, in {format_size(report.setting.memory)}, by bytes"
        yield Tile("Largest batch", f"{fit.original:,}", f"{fit.converted:,}", note)


def ratio_by_point(report: BenchReport) -> Plot | None:
    """Plot the ratio of the times of a decode step, with the range of its turns, beside the ratio of the bytes."""
    if not report.decode:
        return None
    rows = report.decode
    places = range(len(rows))
    description = "Ratio of the times of a decode step at each point, beside the ratio of the bytes."
    with drawing("ratio", description, height=1.1 + _ROW * len(rows)) as plot:
        middles = [row.ratio.median for row in rows]
        below = [row.ratio.median - row.ratio.low for row in rows]
        above = [row.ratio.high - row.ratio.median for row in rows]
        points: dict[str, Any] = {"color": CONVERTED, "ecolor": CONVERTED, "capsize": 3, "elinewidth": 1.4}
        plot.axes.errorbar(middles, places, xerr=[below, above], fmt="o", label="measured", **points)
        limits = [row.limit for row in rows]
        plot.axes.plot(limits, places, "|", color=INK, markersize=15, markeredgewidth=2.2, label="limit of the bytes")
        plot.axes.axvline(1, color=MUTED, linestyle=":", linewidth=1.2)
        plot.axes.set_yticks(places, [_name(row) for row in rows])
        plot.axes.grid(visible=False)
        plot.axes.set(xlabel="times as fast", xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
        legend(plot.axes)
    caption = "Above 1 the converted model is faster. Whiskers are the slowest and the fastest turn."
    return Plot("How much faster a decode step is", caption, plot.svg)


def step_by_context(report: BenchReport) -> Plot | None:
    """Plot the time of a decode step against the context, of both models, with the largest batch."""
    batch = max((row.batch for row in report.decode), default=0)
    rows = [row for row in report.decode if row.batch == batch]
    if len({row.context for row in rows}) < 2:
        return None
    of = report.context_name
    with drawing("step", f"Time of a decode step against the {of}, batch {batch}, for both models.") as plot:
        for marker, kind in zip(_MARKERS, dict.fromkeys(row.cache for row in rows), strict=False):
            _lines(plot.axes, [row for row in rows if row.cache == kind], kind, marker)
        plot.axes.set_xscale("log", base=2)
        plot.axes.set(xlabel=f"{of} (tokens)", ylabel="milliseconds a step", ylim=(0, None))
        plot.axes.set_xticks(sorted({row.context for row in rows}))
        plot.axes.xaxis.set_major_formatter(lambda tokens, _: _context(tokens))
        plot.axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.6)
    return Plot("Time of a decode step", f"Batch {batch}, median.", plot.svg)


def _lines(axes: Axes, rows: Sequence[Decode], kind: str, marker: str) -> None:
    contexts = [row.context for row in rows]
    style = "-" if kind == "dynamic" else "--"
    before = [row.original.median * 1e3 for row in rows]
    after = [row.converted.median * 1e3 for row in rows]
    axes.plot(contexts, before, style, marker=marker, color=ORIGINAL, label=f"original, {kind}")
    axes.plot(contexts, after, style, marker=marker, color=CONVERTED, label=f"converted, {kind}")


def _name(row: Decode) -> str:
    return f"batch {row.batch}, {_context(row.context)}, {row.cache}"


def _context(tokens: float) -> str:
    return f"{tokens / 1024:g}k" if tokens >= 1024 else f"{tokens:g}"
