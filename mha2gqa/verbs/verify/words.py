"""The report of `verify` in words and rows, for a terminal. It decides nothing and prints nothing."""

from collections.abc import Iterable, Iterator

from mha2gqa.sections import Column, Part, Row, Section
from mha2gqa.verbs.verify.judge import LOSSY
from mha2gqa.verbs.verify.levels import (
    Compared,
    EmbeddingsLevel,
    EngineLevel,
    FileLevel,
    HeadLevel,
    LoadLevel,
    OutputsLevel,
)
from mha2gqa.verbs.verify.outcome import Benchmark, Verification

_STATES = {True: "passed", False: "FAILED", None: "open"}
_SHOWN = 100
"""Characters of a text that are shown."""


def summary(report: Verification) -> Iterator[Part]:
    """Yield the parts of the report in the order in which they are read, a blank line between; the verdict is last.

    Below it stands the command that does what it advises, where there is one.
    """
    for number, section in enumerate(_sections(report)):
        if number:
            yield ""
        yield section
    if report.remedy is not None and report.remedy.command is not None:
        yield f"    {report.remedy.command}"


def _sections(report: Verification) -> Iterator[Section]:
    yield _section((), _facts(report))
    if report.load is not None:
        yield _checks(report.load)
    if report.engine is not None:
        yield _engine(report.engine)
    if report.embeddings is not None:
        yield _cosines(report.embeddings)
        yield _layers(report.embeddings)
    if report.outputs is not None:
        yield _outputs(report.outputs)
        yield _layers(report.outputs)
        yield _section((), _texts(report.outputs))
    if report.head is not None:
        yield _head(report.head)
        yield _layers(report.head)
    if report.benchmarks:
        yield _benchmarks(report.benchmarks)
    rows = tuple((finding.level, finding.guilty, finding.problem) for finding in report.findings)
    if rows:
        yield _section(("level", "what", "finding"), rows)
    yield _section((), [("verdict", _verdict(report))])


def _verdict(report: Verification) -> str:
    findings = report.findings
    if not findings:
        return f"{report.headline}. {' '.join(report.reasons)}".rstrip()
    notes = report.reasons[len(findings) :]
    return " ".join((f"{report.verdict}: {_problem(report)}.", *notes))


def _problem(report: Verification) -> str:
    """Return what is wrong first, and what to do about it, for somebody who has never met a limit."""
    first, limits, loss = report.findings[0], report.limits, report.outputs and report.outputs.loss
    problem = f"{first.guilty} {first.problem}"
    if first.level == "outputs" and loss and not loss.increase <= limits.max_ppl_increase:
        named = "default limit" if limits == LOSSY else "limit"
        problem = f"perplexity {100 * loss.increase:+.1f} %, above the {named} of {100 * limits.max_ppl_increase:g} %"
    sign = ":" if first.level == "outputs" else ";"
    return problem if report.remedy is None else f"{problem}{sign} {report.remedy.text}"


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
    if (compared := report.compared) is not None:
        text = compared.text
        blocks = f"{text.blocks} block{'s' * (text.blocks > 1)} of {text.context}"
        yield "text", f"{text.description}: {text.tokens:,} tokens compared, {blocks}"


def _files(file: FileLevel) -> str:
    kinds = {"copied": file.compared, "recomputed and equal": file.recomputed, "checked by checksum": file.checksummed}
    tensors = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    fine = "all as recorded" if file.checksummed else "all as expected"
    state = f"{len(file.findings)} findings" if file.findings else fine
    return f"tensors: {tensors or 'none'}; {file.files} other files; {state}"


def _checks(load: LoadLevel) -> Section:
    rows = tuple((check.name, _STATES[check.passed], check.detail) for check in load.checks)
    return _section(("check", "", ""), rows)


def _engine(engine: EngineLevel) -> Section:
    cache = f"{engine.cache_formula:,} bytes a token by formula"
    if engine.cache_measured is not None:
        cache = f"{engine.cache_measured:,.0f} bytes a token, {cache}"
    rows = [
        (
            "probabilities",
            f"{engine.mean_difference:.2g} nats off in the mean, {engine.largest_difference:.2g} at most",
        ),
        ("greedy text", f"{engine.agreed} of {engine.written} tokens as transformers writes them"),
        ("cache", cache),
    ]
    rows += [("cache, in its words", engine.cache)] if engine.cache else []
    if engine.unread_window is not None:
        rows += [("window", f"of {engine.unread_window:,} tokens was not filled: nothing tells whether it is heeded")]
    return _section((f"{engine.name} ({engine.version})", "beside transformers"), rows)


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
        ("top-1 agreement", "", "", f"{outputs.top1:.2%}"),
        ("top-5 overlap", "", "", f"{outputs.top5:.2%}"),
        ("largest logit difference", "", "", f"{outputs.largest_logit_difference:.4g}"),
    ]
    alike = ", ".join(f"{part:.0%} over {length} tokens" for length, part in outputs.agreement.items())
    rows += [("identical greedy text", "", "", alike)] if alike else []
    if one := outputs.answers:
        gained = f"{one.converted - one.original:+.4f}"
        rows += [
            (f"answers alone ({one.tokens:,} tokens): loss", f"{one.original:.4f}", f"{one.converted:.4f}", gained),
            ("  KL divergence, nats a token", "", "", f"{one.kl:.4g}"),
            ("  top-1 agreement", "", "", f"{one.top1:.2%}"),
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


def _head(head: HeadLevel) -> Section:
    rows = [("largest difference of an output", f"{head.largest_difference:.4g}")]
    rows += [("error of the outputs, of their size", f"{head.error:.4g}")]
    if head.kl is not None and head.same is not None:
        rows = [("KL divergence, nats", f"{head.kl:.4g}"), ("same most likely", f"{head.same:.2%}"), *rows]
    return _section((f"outputs: {head.gives}", "both"), rows, numbers=True)


def _layers(outputs: Compared) -> Section:
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
        left_out = "... " * (len(text.prompt) > _SHOWN)
        yield "prompt", _one_line(left_out + text.prompt[-_SHOWN:])
        yield "  original", _one_line(_beginning(text.original))
        yield "  converted", _one_line(_beginning(text.converted))


def _beginning(text: str) -> str:
    """Return as much of a text as is shown; dots say that there is more, and nothing else does."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
