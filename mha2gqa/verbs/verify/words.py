"""The report of `verify` in words and rows, for a terminal. It decides nothing and prints nothing."""

from collections.abc import Iterable, Iterator

from mha2gqa.sections import Column, Part, Row, Section
from mha2gqa.verbs.verify.levels import EmbeddingsLevel, FileLevel, LoadLevel, OutputsLevel
from mha2gqa.verbs.verify.outcome import Benchmark, Verification

_SHOWN = 100
"""Characters of a text that are shown."""


def summary(report: Verification) -> Iterator[Part]:
    """Yield the parts of the report in the order in which they are read, a blank line between; the verdict is last."""
    for number, section in enumerate(_sections(report)):
        if number:
            yield ""
        yield section


def _sections(report: Verification) -> Iterator[Section]:
    yield _section((), _facts(report))
    if report.load is not None:
        yield _checks(report.load)
    if report.embeddings is not None:
        yield _cosines(report.embeddings)
        yield _layers(report.embeddings)
    if report.outputs is not None:
        yield _outputs(report.outputs)
        yield _layers(report.outputs)
        yield _section((), _texts(report.outputs))
    if report.benchmarks:
        yield _benchmarks(report.benchmarks)
    rows = tuple((finding.level, finding.guilty, finding.problem) for finding in report.findings)
    if rows:
        yield _section(("level", "what", "finding"), rows)
    first = report.reasons[:1] if not rows else ()
    notes = report.reasons[len(rows) :] if rows else report.reasons[1:]
    yield _section((), [("verdict", f"{report.verdict}. {' '.join((*first, *notes))}".rstrip())])


def _section(titles: Row, rows: Iterable[Row], *, numbers: bool = False) -> Section:
    """Return a table whose cells may be long; without rows it is empty, without titles the first column says enough.

    Args:
        titles: Of the columns.
        rows: Their cells.
        numbers: Whether all columns but the first hold numbers.
    """
    rows = tuple(rows)
    width = len(rows[0]) if rows else 0
    columns = enumerate((titles or ("",) * width)[:width])
    return Section(tuple(Column(title, is_number=numbers and place > 0, folds=True) for place, title in columns), rows)


def _facts(report: Verification) -> Iterator[Row]:
    made = report.conversion
    way = made.way or made.command
    yield "converted", report.converted
    yield "original", report.original
    yield "conversion", f"{made.family}, {made.change}, {way}"
    for one in made.trainings:
        yield "uptrained", one
    if report.file is not None:
        yield "files", _files(report.file)
    if report.load is not None:
        yield "run", f"{report.load.dtype} on {report.load.device}"
    if (compared := report.outputs or report.embeddings) is not None:
        text = compared.text
        blocks = f"{text.blocks} block{'s' * (text.blocks > 1)} of {text.context}"
        yield "text", f"{text.description}: {text.tokens:,} tokens compared, {blocks}"


def _files(file: FileLevel) -> str:
    kinds = {"copied": file.compared, "made again": file.recomputed, "by checksum": file.checksummed}
    tensors = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    state = f"{len(file.findings)} findings" if file.findings else "all as they must be"
    return f"tensors: {tensors or 'none'}; {file.files} other files; {state}"


def _checks(load: LoadLevel) -> Section:
    rows = tuple((check.name, "passed" if check.passed else "FAILED", check.detail) for check in load.checks)
    return _section(("check", "", ""), rows)


def _outputs(outputs: OutputsLevel) -> Section:
    rows: list[Row] = []
    if (loss := outputs.loss) is not None:
        before, after = loss.perplexities
        interval = "" if loss.interval is None else f" ({loss.interval[0]:+.4f} to {loss.interval[1]:+.4f})"
        gained = f"{loss.difference:+.4f}{interval}"
        rows.append(("loss, nats a token", f"{loss.original:.4f}", f"{loss.converted:.4f}", gained))
        rows.append(("perplexity", f"{before:.2f}", f"{after:.2f}", f"{loss.increase:+.2%}"))
    kl = outputs.kl
    rows += [
        ("KL divergence, nats a token", "", "", f"{kl.mean:.4g} (99 % below {kl.p99:.4g})"),
        ("same most likely token", "", "", f"{outputs.top1:.2%}"),
        ("shared among the five most likely", "", "", f"{outputs.top5:.2%}"),
        ("largest difference of a logit", "", "", f"{outputs.largest_logit_difference:.4g}"),
    ]
    return _section(("outputs", "original", "converted", "difference"), tuple(rows), numbers=True)


def _cosines(embeddings: EmbeddingsLevel) -> Section:
    cosines = embeddings.cosines
    rows = (
        ("cosine of embeddings, mean of blocks", f"{cosines.mean:.4f}"),
        ("cosine of embeddings, least", f"{cosines.least:.4f}"),
        ("cosine of a token's last hidden states, mean", f"{cosines.tokens:.4f}"),
        ("largest difference of a hidden state", f"{cosines.largest_difference:.4g}"),
    )
    return _section(("outputs", "both"), rows, numbers=True)


def _layers(outputs: OutputsLevel | EmbeddingsLevel) -> Section:
    rows = tuple((layer.module, f"{layer.error:.4g}") for layer in outputs.layers)
    return _section(("attention output", "relative error"), rows, numbers=True)


def _benchmarks(benchmarks: tuple[Benchmark, ...]) -> Section:
    rows = tuple(
        (
            f"{one.task}, {one.metric}",
            with_error(one.original, one.original_error),
            with_error(one.converted, one.converted_error),
            f"{one.converted - one.original:+.4f}",
        )
        for one in benchmarks
    )
    return _section(("benchmark", "original", "converted", "difference"), rows, numbers=True)


def with_error(value: float, error: float | None) -> str:
    """Return a score with its standard error, where there is one."""
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _texts(outputs: OutputsLevel) -> Iterator[Row]:
    for text in outputs.continuations:
        yield "prompt", _one_line(f"... {text.prompt[-_SHOWN:]}")
        yield "  original", _one_line(text.original[:_SHOWN])
        yield "  converted", _one_line(text.converted[:_SHOWN])


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
