"""The report of `convert` and `expand` in words, the plan of a dry run, and a line for each layer on the way."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mha2gqa.methods import AUTO_METHOD, find_method
from mha2gqa.record.conversion import Outcome
from mha2gqa.sections import Column, Facts, Paragraph, Part, Section
from mha2gqa.units import format_size as size
from mha2gqa.verbs.convert.kinds import kinds_of

_LONG = 60
"""Characters of a value of a config that a dry run shows whole."""
_OF_MEAN = (
    "averaging heads that were trained independently breaks the model until it is trained again (mha2gqa uptrain); "
    "--method aligned gives the same cache at a fraction of the loss"
)
_OF_WAY = ("heads", "cached")
"""Facts behind which stands by what way they came about."""


def summary(report: Outcome) -> Iterator[Part]:
    """Yield the parts of the report; after a dry run all that would be done comes first."""
    if not report.written:
        yield from _plan(report)
    yield Facts(tuple(_facts(report)))


def layer_line(module: str, errors: Mapping[str, float], number: int, total: int) -> str:
    """Return what was gained in a layer, for one that is finished."""
    told = ", ".join(f"{step} {error:.4f}" for step, error in errors.items())
    return f"layer {number}/{total} {module}: error {told}"


def _facts(report: Outcome) -> Iterator[tuple[str, str]]:
    counts = Counter(tensor["action"] for tensor in report.tensors)
    yield "source", f"{report.source} ({report.rehosted_from or report.model_type})"
    yield "output", str(report.output)
    if report.rehosted_from is not None:
        yield "class", f"{report.model_type}: that of {report.rehosted_from} {report.change.lacks}"
    for fact in report.change.facts:
        yield fact.label, fact.arrow + (f", {report.way}" if report.way and fact.name in _OF_WAY else "")
    yield from _layers(report)
    yield "KV cache", _cache(report)
    yield "weights", f"{size(report.bytes_read)} -> {size(report.bytes_written)}"
    recomputed = f", {counts['recomputed']} recomputed for the class" if counts["recomputed"] else ""
    yield "tensors", f"{counts['changed']} changed, {counts['copied']} copied{recomputed}"
    if report.left_behind:
        yield "left behind", ", ".join(report.left_behind)
    if report.taken_off:
        yield "taken off", ", ".join(_taken_off(report.taken_off))
    if report.written:
        speed = report.bytes_read / max(report.seconds, 1e-9)
        yield "writing" if report.layers else "time", f"{report.seconds:.1f} s ({size(int(speed))}/s)"
    if report.pushed is not None:
        yield "uploaded", report.pushed
    if report.written:
        yield "next", f"mha2gqa verify {shlex.quote(str(report.output))}"


def _taken_off(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        is_prefix = name.endswith(".")
        yield f"{name} in front of names" if is_prefix else f"{name} in config.json: no tensor is quantised"


def _cache(report: Outcome) -> str:
    if not report.cache_before:
        return "none: an encoder"
    share = report.cache_after / report.cache_before
    told = f"{size(report.cache_before)} -> {size(report.cache_after)} a token ({share:.0%})"
    for tokens, (before, after) in report.cache_at.items():
        told += f"; of {tokens:,} tokens {size(before)} -> {size(after)} ({after / before:.1%})"
    return told


def _layers(report: Outcome) -> Iterator[tuple[str, str]]:
    """Yield what a layer method did: what could not move, the errors of layers, what was tried."""
    fixed = {side: sum(layer.get(side) == "fixed" for layer in report.layers) for side in ("keys", "values")}
    if any(fixed.values()) and report.method and not find_method(report.method).streams:
        held = " and ".join(f"the {side} of {count}" for side, count in fixed.items() if count)
        yield "averaged", f"{held} of {len(report.layers)} layers, which the family does not allow to move"
    if report.text:
        yield "text", report.text
    for what in ("scores", "values"):
        if lost := [layer[f"{what}_lost"] for layer in report.layers if f"{what}_lost" in layer]:
            yield f"{what} lost", f"{sum(lost) / len(lost):.2%} of their energy, mean of the layers"
    for step in report.layers[0]["errors"] if report.layers else ():
        mean = sum(layer["errors"].get(step, min(layer["errors"].values())) for layer in report.layers)
        error = mean / len(report.layers)
        yield f"error {step}", f"{error:.4f} of the attention outputs' energy, mean of the layers"
    if report.divergence:
        before, after = report.divergence
        is_better = after < before
        gained = f" -> {after:.4f} nats a token" if is_better else " nats a token: nothing gained, and taken back,"
        yield "error joint", f"KL divergence {before:.4f}{gained} on text kept aside"
    for trial in report.trials:
        way = ", ".join(filter(None, (trial.get("way"), trial["refine"]))) or AUTO_METHOD
        yield f"{trial.get('label', 'tried')} {way}", f"perplexity {trial['increase']:+.2%} (loss {trial['loss']:.4f})"
    for note in report.notes:
        yield "note", note
    if report.method == "mean" and report.groups:
        yield "note", _OF_MEAN


def _plan(report: Outcome) -> Iterator[Part]:
    """Yield what would be done, one line for each kind of thing, so that a person still sees the summary below."""
    titles = ("tensors", "number", "action", "dtype", "before", "after")
    rows = (
        (name, str(number), tensor["action"], tensor["dtype"], _shape(tensor["before"]), _shape(tensor["after"]))
        for name, number, tensor in kinds_of(report.tensors)
    )
    columns = tuple(Column(title, is_number=title == "number", folds=True) for title in titles)
    yield Section(columns, tuple(rows))
    yield Paragraph(_files(report.files))
    yield from (f"write {name}" for name in report.added)
    if report.companions:
        yield Paragraph(f"copy {', '.join(report.companions)}")
    for change in report.config_changes:
        path = ".".join(change["path"])
        yield Paragraph(f"config.json {path}: {_value(change['before'])} -> {_value(change['after'])}")
    if report.rehosted_from is not None:
        yield Paragraph(f"config.json model_type: {_value(report.rehosted_from)} -> {_value(report.model_type)}")
    yield Paragraph("\nDry run: nothing was written. --json lists every tensor.\n")


def _value(value: object) -> str:
    """Return a value of a config; of one that would fill the screen, how much it is."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONG or not isinstance(value, list | dict):
        return text
    return f"({len(value)} {'entries' if isinstance(value, list) else 'keys'})"


def _files(files: Mapping[str, int]) -> str:
    names = list(files)
    through = f" to {names[-1]}: {len(names)} files," if len(names) > 1 else ":"
    return f"write {names[0]}{through} {size(sum(files.values()))}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else str(list(shape))
