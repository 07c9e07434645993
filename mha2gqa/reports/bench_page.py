"""A `BenchReport` as a page: the few numbers that matter first, then the plots, then every row.

Words and rows are `timing/summary.py`'s, plots `bench_figures.py`'s; the template places them.
"""

from collections.abc import Iterator
from importlib.metadata import version

from mha2gqa.checkpoint.sizes import format_size
from mha2gqa.reports import bench_figures
from mha2gqa.reports.page import render
from mha2gqa.timing.results import BenchReport
from mha2gqa.timing.summary import facts, notes, tables

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
    before, after = report.original.cache_per_token, report.converted.cache_per_token
    note = f"a token; {after / max(1, before):.1%} of the original"
    yield {"name": "KV cache", "before": format_size(before), "value": format_size(after), "note": note}
    if report.decode:
        row = max(report.decode, key=lambda row: (row.batch * row.context, row.ratio.median))
        note = f"batch {row.batch}, context {row.context}, {row.cache} cache"
        yield {"name": "Decode, times as fast", "before": "", "value": f"{row.ratio.median:.2f}", "note": note}
        note = f"by which it can be {row.limit:.2f} times as fast"
        moved = {"before": format_size(row.step_bytes[0]), "value": format_size(row.step_bytes[1])}
        yield {"name": "Bytes of that step", **moved, "note": note}
    if report.fits:
        fit = report.fits[-1]
        note = f"context {fit.context}, in {format_size(report.setting.memory)}, by bytes"
        values = {"before": f"{fit.original:,}", "value": f"{fit.converted:,}"}
        yield {"name": "Largest batch", **values, "note": note}
