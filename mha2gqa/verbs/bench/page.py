"""A `BenchReport` as a page: the few numbers that matter first, then the plots, then every row.

Words and rows are `timing/summary.py`'s, plots `bench_figures.py`'s; the template places them.
"""

from collections.abc import Iterator
from importlib.metadata import version

from mha2gqa.pages.page import render
from mha2gqa.units import format_size
from mha2gqa.verbs.bench import figures as bench_figures
from mha2gqa.verbs.bench.outcome import BenchReport
from mha2gqa.verbs.bench.words import caches, facts, notes, tables

Tile = dict[str, str]


def bench_page(report: BenchReport) -> str:
    """Return the page of a measurement, as HTML that needs no other file."""
    plots = (bench_figures.ratio_by_point(report), bench_figures.step_by_context(report))
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
        yield {"name": one.name, "before": format_size(one.before), "value": format_size(one.after), "note": note}
    if report.decode:
        row = max(report.decode, key=lambda row: (row.batch * row.context, row.ratio.median))
        note = f"batch {row.batch}, {report.context_name} {row.context}, {row.cache} cache"
        yield {"name": "Decode, times as fast", "before": "", "value": f"{row.ratio.median:.2f}", "note": note}
        note = f"by which it can be {row.limit:.2f} times as fast"
        moved = {"before": format_size(row.step_bytes[0]), "value": format_size(row.step_bytes[1])}
        yield {"name": "Bytes of that step", **moved, "note": note}
    if report.fits:
        fit = report.fits[-1]
        note = f"{report.context_name} {fit.context}, in {format_size(report.setting.memory)}, by bytes"
        values = {"before": f"{fit.original:,}", "value": f"{fit.converted:,}"}
        yield {"name": "Largest batch", **values, "note": note}
