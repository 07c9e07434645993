"""A sweep as words: the verdict, the table of points, the table of single layers; for the console and the page.

The numbers are `outcome.py`'s.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mha2gqa.sections import Paragraph, Part, Section, numbers
from mha2gqa.texts.words import NONE
from mha2gqa.verbs.sweep.outcome import Point, Sweep
from mha2gqa.verbs.verify.measures import Loss

HEADER = ("KV heads", "way", "cache a token", "of original", "loss", "perplexity", "increase", "KL", "top-1", "s", "")
_RECOMMENDED, _ON_FRONTIER = "recommended", "frontier"


class Row(NamedTuple):
    """One line of a table."""

    cells: tuple[str, ...]
    recommended: bool = False


def summary(sweep: Sweep) -> Iterator[Part]:
    """Yield the parts of the report: the points, the single layers, which one to take and how to make it."""
    yield f"model  {sweep.model} ({sweep.model_type}, {sweep.heads} KV heads)"
    yield f"text   {evaluated(sweep)}\n"
    yield Section(numbers(*HEADER), tuple(row.cells for row in point_rows(sweep)))
    if sweep.text is not None and any(point.window for point in sweep.points):
        length = f"{sweep.text.context:,}"
        yield Paragraph(f"\nBytes of a window are those of {length} tokens, through {length}: of a longer text fewer.")
    header, rows = layer_table(sweep)
    if rows:
        yield Paragraph("\nLoss added by one layer alone, nats a token:")
        yield Section(numbers(*header), tuple(row.cells for row in rows))
    yield Paragraph(f"\n{verdict(sweep)}")
    if sweep.recommended:
        yield f"    {sweep.recommended.command}"


def plan_line(event: Mapping[str, Any]) -> str:
    """Return what a sweep is about to do, from the event of that."""
    points, alone, layers = event["points"], event["alone"], event["known_alone"]
    to_do = [f"{points:,} to convert and measure"] * bool(points)
    to_do += [f"the single layers of {alone} method{'s' * (alone > 1)}"] * bool(alone)
    known = [f"{event['known']:,} conversions"] * bool(event["known"])
    known += [f"{layers:,} layers"] * bool(layers)
    there = f" ({' and '.join(known)} are known)" if known else ""
    return (
        f"{', then '.join(to_do)}{there}. Each is kept in {event['output']} as soon as it is there: "
        "the same command goes on from it."
    )


def point_line(event: Mapping[str, Any]) -> str:
    """Return what was measured of a conversion, from the event of that while the sweep runs."""
    losses = f"loss {event['loss']:.4f} ({event['difference']:+.4f}), perplexity {event['increase']:+.2%}"
    return f"{event['name']}: {losses}"


def verdict(sweep: Sweep) -> str:
    """Return which conversion to take, as sentences."""
    unread = any(f"--data {NONE}" in point.command for point in sweep.points)
    return _chosen(sweep) + (
        " Without --data, methods that make use of text had none: with it they lose less." * unread
    )


def _chosen(sweep: Sweep) -> str:
    limit = f"{sweep.max_ppl_increase:.2%}"
    if chosen := sweep.recommended:
        return (
            f"Take G = {chosen.heads} by {chosen.way}: {_share(chosen.cache, sweep.cache)} of the cache, perplexity "
            f"{chosen.measured.loss.increase:+.2%}; of those within the limit of {limit} it has the smallest cache."
        )
    if nearest := sweep.nearest:
        return (
            f"No conversion keeps the perplexity within {limit}. The nearest is G = {nearest.heads} by {nearest.way}, "
            f"with {nearest.measured.loss.increase:+.2%}. Add refinements (--refine refit,distil), or allow more "
            "(--max-ppl-increase)."
        )
    return "Nothing was measured."


def evaluated(sweep: Sweep) -> str:
    """Return what was evaluated on, and how, as a phrase."""
    if sweep.text is None:
        return ""
    text = sweep.text
    return (
        f"{text.description}: {text.tokens:,} tokens, {text.blocks:,} blocks of {text.context:,}; "
        f"{sweep.dtype} on {sweep.device}"
    )


def point_rows(sweep: Sweep) -> list[Row]:
    """Return the cells of `HEADER` for the original and for every point, the largest cache first."""
    frontier, chosen = sweep.frontier, sweep.recommended
    rows = [_original(sweep.points[0].measured.loss, sweep)] if sweep.points else []
    for point in sorted(sweep.points, key=lambda one: (-one.cache, one.method, one.seconds)):
        mark = _RECOMMENDED if point is chosen else _ON_FRONTIER if point in frontier else ""
        rows.append(Row((*_cells(point, sweep), mark), point is chosen))
    return rows


def _original(loss: Loss, sweep: Sweep) -> Row:
    perplexity = f"{loss.perplexities[0]:.2f}"
    return Row(
        (str(sweep.heads), "original", f"{sweep.cache:,} B", "100%", f"{loss.original:.4f}", perplexity, *[""] * 5)
    )


def _cells(point: Point, sweep: Sweep) -> tuple[str, ...]:
    measured = point.measured
    return (
        point.heads,
        point.way,
        f"{point.cache:,} B",
        _share(point.cache, sweep.cache),
        f"{measured.loss.converted:.4f}",
        f"{measured.loss.perplexities[1]:.2f}",
        f"{measured.loss.increase:+.2%}",
        f"{measured.kl:.4f}",
        f"{measured.top1:.2%}",
        f"{point.seconds:.1f}",
    )


def layer_table(sweep: Sweep) -> tuple[tuple[str, ...], list[Row]]:
    """Return header and rows: what each attention module, converted alone, adds to the loss, by method."""
    columns = list(dict.fromkeys((one.method, one.groups) for one in sweep.layers))
    found = {(one.method, one.groups, one.module): one.measured.loss.difference for one in sweep.layers}
    modules = dict.fromkeys(one.module for one in sweep.layers)
    header = ("attention module alone", *(f"{method}, G = {groups}" for method, groups in columns))
    keys = {module: [(*column, module) for column in columns] for module in modules}
    return header, [
        Row((module, *(f"{found[key]:+.4f}" if key in found else "" for key in keys[module]))) for module in modules
    ]


def _share(cache: int, whole: int) -> str:
    return f"{100 * cache / max(1, whole):.4g}%"
