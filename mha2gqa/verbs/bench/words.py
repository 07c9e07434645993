"""The report of `bench` in words and rows, for a terminal and for the page. It decides nothing and prints nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from mha2gqa.sections import Column, Facts, Paragraph, Part, Row, Section, numbers
from mha2gqa.units import format_size
from mha2gqa.verbs.bench.outcome import SPREAD_BOUND, BenchReport, Decode, Fit, Prefill, Ratio, Side, Times

DISTURBED = "disturbed"
_DECODE = ("cache", "ms a step", "converted", "ratio (turns)", "limit", "cache bytes")
_PREFILL = ("tokens/s", "converted", "ratio (turns)", "cache at most")
_FIT = ("largest batch", "converted")
_REMARK = Column("remark", folds=True)


@dataclass(frozen=True)
class Cache:
    """What a token takes in a cache of one sequence."""

    name: str
    token: str
    """Which token."""
    before: int
    """Bytes in the original."""
    after: int
    """Bytes in the converted model."""

    @property
    def share(self) -> float:
        """What is left of the original's."""
        return self.after / max(1, self.before)


def summary(report: BenchReport) -> Iterator[Part]:
    """Yield the parts of the report in the order in which they are read."""
    yield Facts(tuple(facts(report)))
    for table in tables(report):
        yield from ("", table.name, table)
    yield ""
    yield from map(Paragraph, notes(report))


def caches(report: BenchReport) -> list[Cache]:
    """Return the caches that a model has: of a decoder, or of both kinds of attention behind an encoder."""
    sides = (report.original, report.converted)
    before, after = (side.cache_per_token for side in sides)
    if report.target_context is None:
        return [Cache("KV cache", "token", before, after)]
    cross = Cache("Cache of the source", "token of the source", *(side.cross_cache_per_token for side in sides))
    return [cross, Cache("Cache of the target", "token of the target", before, after)]


def facts(report: BenchReport) -> Iterator[tuple[str, str]]:
    """Yield what was measured, on what, and by what."""
    setting = report.setting
    yield "original", _side(report.original)
    yield "converted", _side(report.converted)
    yield "weights", "random" if report.random_weights else "the checkpoints'"
    held = (
        f"{format_size(one.before)} -> {format_size(one.after)} a {one.token} ({one.share:.0%})"
        for one in caches(report)
    )
    yield "cache", ", ".join(held)
    if report.target_context is not None:
        yield "target", f"{report.target_context} tokens in the decoder's own cache when decoding begins"
    compiled = ", static cache compiled" if setting.compiled else ""
    yield "run by", f"{setting.engine}, attention {setting.attention}, {setting.dtype}{compiled}"
    yield "run on", f"{setting.device}, {setting.threads} threads"
    yield "machine", ", ".join(f"{name} {value}" for name, value in setting.machine.items())
    yield "versions", ", ".join(f"{name} {value}" for name, value in setting.versions.items())


def tables(report: BenchReport) -> Iterator[Section]:
    """Yield the measurements."""
    length = report.context_name
    read = "prompt" if report.target_context is None else length
    tried = any(fit.tried for fit in report.fits)
    fits = numbers(length, *_FIT, *(("ran", "converted") if tried else ()))
    yield Section((*numbers("batch", length, *_DECODE), _REMARK), tuple(map(_decode, report.decode)), "decode")
    yield Section((*numbers("batch", read, *_PREFILL), _REMARK), tuple(map(_prefill, report.prefill)), "prefill")
    yield Section(fits, tuple(_fit(fit, tried=tried) for fit in report.fits), "largest batch")


def notes(report: BenchReport) -> Iterator[str]:
    """Yield what to know when reading the tables."""
    yield (
        "ratio: how many times as fast the converted model is, median and range of the turns; limit: the ratio that "
        "memory traffic allows, if a step reads all weights once and the cache of the batch."
    )
    if report.target_context is not None:
        yield (
            "source: tokens in the cache of cross-attention, which a decode step reads without the encoder and without "
            "the weights that made it; prefill: the encoder reads the source, and the decoder writes its first token."
        )
    if any(row.chunk for row in report.prefill):
        yield (
            "by: the prompt is read in pieces as long as the window. Read at once, a layer with a window holds the "
            "whole prompt until the next token; cache at most is what the tensors occupied."
        )
    yield (
        f"largest batch: as many sequences as fit with the weights into {format_size(report.setting.memory)}, computed "
        "from bytes; what an engine needs besides is not counted."
    )
    if report.disturbed:
        yield (
            f"{DISTURBED}: the interquartile range of the times is more than {SPREAD_BOUND:.0%} of their median, as in "
            f"{report.disturbed} of the rows. Measure again when the machine is idle."
        )


def _side(side: Side) -> str:
    weights = f"{side.parameters:,} parameters, {format_size(side.weights)}"
    heads = f"{side.kv_heads} KV heads" if side.kv_heads else "a latent for all heads"
    return f"{side.name}: {heads}, {weights}"


def _decode(row: Decode) -> Row:
    times = (_milliseconds(row.original), _milliseconds(row.converted))
    both = zip(row.cache_bytes, row.cache_measured, strict=True)
    held = " -> ".join(format_size(one) + _measured(one, seen) for one, seen in both)
    remarks = [DISTURBED] * row.disturbed + [row.reason] * bool(row.reason)
    point = (str(row.batch), str(row.context), row.cache)
    return (*point, *times, _ratio(row.ratio), f"{row.limit:.2f}", held, "; ".join(remarks))


def _measured(formula: int, measured: int | None) -> str:
    """Return what is added to the bytes by formula: nothing where the measured ones are the same."""
    return "" if measured in (None, formula) else f" (measured {format_size(measured or 0)})"


def _prefill(row: Prefill) -> Row:
    before, after = row.rates
    most = " -> ".join("-" if size is None else format_size(size) for size in row.peak)
    numbers = (f"{before:,.0f}", f"{after:,.0f}", _ratio(row.ratio), most)
    read = str(row.tokens) if row.chunk is None else f"{row.tokens} by {row.chunk}"
    return (str(row.batch), read, *numbers, DISTURBED * row.disturbed)


def _fit(fit: Fit, *, tried: bool) -> Row:
    ran = tuple(str(one) for one in fit.tried or ("-", "-")) if tried else ()
    return (str(fit.context), f"{fit.original:,}", f"{fit.converted:,}", *ran)


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _milliseconds(times: Times) -> str:
    return f"{times.median * 1e3:.1f} ±{times.spread / 2:.0%}"
