"""A `Verification` as a page: verdict first, then what it rests on, level by level.

Words what `templates/verify.html` shows and picks the plots of `figures.py`. The template places them;
`pages/page.py` renders and writes. Nothing is measured here.
"""

import re
from collections.abc import Iterator
from importlib.metadata import version
from itertools import permutations, takewhile
from pathlib import PurePath
from typing import Any, NamedTuple

from mha2gqa.pages.figures import Plot
from mha2gqa.pages.page import render
from mha2gqa.record.conversion import Conversion
from mha2gqa.units import format_size
from mha2gqa.verbs.verify import figures
from mha2gqa.verbs.verify.levels import Compared, EmbeddingsLevel, HeadLevel, OutputsLevel
from mha2gqa.verbs.verify.measures import ComparedText, Continuation
from mha2gqa.verbs.verify.outcome import Benchmark, Limits, Verification
from mha2gqa.verbs.verify.words import with_error

_SIGNS = {"identical": ("=", "good"), "within limits": ("✓", "good"), "different": ("✗", "bad")}


class Tile(NamedTuple):
    """One of the few numbers at the top."""

    name: str
    before: str
    value: str
    note: str


def verify_page(report: Verification) -> str:
    """Return the page of a verification, as HTML that needs no other file."""
    outputs, compared = report.outputs, report.compared
    sign, tone = _SIGNS[report.verdict]
    return render(
        "verify.html",
        report=report,
        name=PurePath(report.converted).name or report.converted,
        verdict={"sign": sign, "tone": tone, "headline": report.headline.capitalize()},
        reasons=[
            reason[:1].upper() + reason[1:]
            for reason in (*report.reasons[:1], *report.reasons[max(1, len(report.findings)) :])
        ],
        remedy="" if report.remedy is None else f"{report.remedy.text[:1].upper()}{report.remedy.text[1:]}.",
        tiles=list(_tiles(report)),
        levels=list(_levels(report)),
        facts=list(_facts(report)),
        refined=_refined(report.conversion),
        text=_text(compared.text) if compared else "",
        losses=list(loss_rows(outputs, report.limits)) if outputs else [],
        agreement=list(agreement_rows(compared, report.limits)) if compared else [],
        plots=list(_plots(report)),
        continuations=[_continuation(one) for one in outputs.continuations] if outputs else [],
        benchmarks=[_benchmark(one) for one in report.benchmarks],
        versions=_listed(report.versions),
        version=version("mha2gqa"),
        **_maps(report),
    )


def _tiles(report: Verification) -> Iterator[Tile]:
    if (load := report.load) and (before := load.original_cache) and (after := load.converted_cache):
        note = f"a token in {load.dtype}; {after.formula / max(1, before.formula):.1%} of the original"
        yield Tile("KV cache", format_size(before.formula), format_size(after.formula), note)
    if one := report.embeddings:
        yield Tile("Cosine of embeddings", "", f"{one.cosines.mean:.4f}", f"mean of {one.text.blocks:,} blocks")
    if head := report.head:
        yield Tile("Error of the outputs", "", f"{head.error:.3g}", head.gives)
    if not (outputs := report.outputs):
        return
    if loss := outputs.loss:
        original, converted = loss.perplexities
        yield Tile("Perplexity", f"{original:.4g}", f"{converted:.4g}", signed(loss.increase, ".2%"))
    yield Tile("Top-1 agreement", "", share(outputs.top1), f"of {outputs.text.tokens:,} tokens")
    yield Tile("KL divergence", "", f"{outputs.kl.mean:.3g}", "nats a token, mean")


def _levels(report: Verification) -> Iterator[dict[str, Any]]:
    scopes = {"file": "every tensor and file, as bytes", "load": "both models run by transformers", "outputs": ""}
    if file := report.file:
        scopes["file"] = (
            f"{file.compared:,} tensors equal to the original's, {file.recomputed:,} recomputed, {file.checksummed:,} "
            f"by checksum; {file.files:,} other files; {format_size(file.size)} of weights"
        )
    if load := report.load:
        scopes["load"] = f"{len(load.checks)} checks, {load.dtype} on {load.device}"
    if outputs := report.compared:
        scopes["outputs"] = f"{outputs.text.tokens:,} tokens, {outputs.dtype} on {outputs.device}"
    if engine := report.engine:
        scopes["engine"] = (
            f"{engine.name} ({engine.version}): probabilities off by {engine.mean_difference:.2g} nats in the mean, "
            f"{engine.agreed} of {engine.written} tokens as transformers writes them"
        )
    asked = (("Engine", engine),) if engine else ()
    for name, level in (("File", report.file), ("Load", report.load), *asked, ("Outputs", outputs)):
        passed, seconds = (not level.findings, level.seconds) if level else (None, None)
        if level is report.load and report.load and not any(check.passed for check in report.load.checks):
            passed = None if passed else passed
        yield {"name": name, "passed": passed, "seconds": seconds, "scope": scopes[name.lower()] if level else ""}


def _facts(report: Verification) -> Iterator[tuple[str, str]]:
    conversion = report.conversion
    yield "original", report.original
    yield "converted", report.converted
    written = f" (the original is {conversion.rehosted_from})" if conversion.rehosted_from else ""
    yield "family", f"{conversion.model_type}{written}"
    for fact in conversion.change.facts:
        yield fact.label, f"{fact.before} → {fact.after}"
    if conversion.way:
        yield "method", conversion.way
    options = {name: value for name, value in conversion.options.items() if name not in ("groups", "method")}
    if options:
        yield "options", _listed(options)
    if conversion.text:
        yield "calibration text", conversion.text
    for one in conversion.trainings:
        yield "uptrained", one


def _refined(conversion: Conversion) -> dict[str, Any]:
    """Return what the steps of a refinement left of each layer's error, as a table; empty where there was none."""
    steps = list(dict.fromkeys(step for errors in conversion.layer_errors.values() for step in errors))
    rows = [
        {"module": module, "errors": [f"{errors[step]:.3g}" if step in errors else "" for step in steps]}
        for module, errors in conversion.layer_errors.items()
    ]
    return {"steps": steps, "rows": rows} if rows else {}


def _listed(values: Any) -> str:
    named = ((name, value if isinstance(value, list) else [value]) for name, value in values.items())
    return ", ".join(f"{name} {value}" for name, some in named for value in some)


def _text(text: ComparedText) -> str:
    blocks = f"{text.blocks:,} block{'s' * (text.blocks > 1)} of {text.context:,} tokens"
    return f"On {text.description}: {blocks}, each read without those before it."


def _plots(report: Verification) -> Iterator[Plot]:
    plots: list[Plot | None] = []
    if outputs := report.outputs:
        plots.append(figures.loss_by_position(outputs.positions))
        plots.append(figures.error_by_layer(outputs.layers))
        plots.append(figures.divergence(outputs.kl, report.limits.max_kl))
    if one := report.embeddings or report.head:
        plots.append(figures.error_by_layer(one.layers))
    if report.load:
        plots.append(figures.cache_by_context(report.load))
    yield from (plot for plot in plots if plot)


def _continuation(one: Continuation) -> dict[str, Any]:
    pairs = zip(one.original, one.converted, strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))  # characters in common
    texts = {"original": one.original, "converted": one.converted}
    note = f"The first {one.agreed} of {one.tokens} tokens are the same."
    if one.agreed in (0, one.tokens):
        note = f"All {one.tokens} tokens are the same." if one.agreed else "They differ from the first token on."
    return {
        "prompt": one.prompt,
        "sides": [_side(name, text, length) for name, text in texts.items()],
        "note": note,
    }


def _side(name: str, text: str, length: int) -> dict[str, str]:
    """Return a text in three parts: in common, where it first differs (a word), and the rest."""
    own = text[length:]
    word = re.match(r"\s*\S*", own)
    end = word.end() if word else 0
    return {"name": name, "shared": text[:length], "first": own[:end], "own": own[end:]}


def _benchmark(one: Benchmark) -> dict[str, str]:
    arrow = {True: " ↑", False: " ↓", None: ""}[one.higher_is_better]
    shots = f" ({one.shots}-shot)" if one.shots else ""
    return {
        "task": one.task + shots,
        "metric": one.metric + arrow,
        "samples": "" if one.samples is None else f"{one.samples:,}",
        "original": with_error(one.original, one.original_error),
        "converted": with_error(one.converted, one.converted_error),
        "difference": signed(one.converted - one.original, ".4f"),
    }


def _maps(report: Verification) -> dict[str, Any]:
    """Return the similarity maps, and the similarity that has the full colour on all of them."""
    pairs = ((one.values, permutations(range(len(one.values)), 2)) for one in report.similarity)
    largest = max((abs(values[row][column]) for values, places in pairs for row, column in places), default=0.0)
    plots = [figures.similarity_map(one, number, largest or 1.0) for number, one in enumerate(report.similarity)]
    return {"maps": plots, "scale": f"{largest:.2f}"}


class LossRow(NamedTuple):
    """A measure that both models have."""

    name: str
    limit: str
    original: str
    converted: str
    difference: str
    note: str


class AgreementRow(NamedTuple):
    """A measure of how alike the two are."""

    name: str
    limit: str
    value: str


def loss_rows(outputs: OutputsLevel, limits: Limits) -> Iterator[LossRow]:
    """Yield the measures that both models have; none where the text predicts nothing."""
    if not (loss := outputs.loss):
        return
    interval = " to ".join(signed(bound, ".4f") for bound in loss.interval) if loss.interval else ""
    values = (f"{loss.original:.4f}", f"{loss.converted:.4f}", signed(loss.difference, ".4f"))
    yield LossRow("loss, nats a token", "", *values, interval and f"95 %: {interval}")
    before, after = loss.perplexities
    limit = f"at most {signed(limits.max_ppl_increase, '.1%')}"
    yield LossRow("perplexity", limit, f"{before:.4g}", f"{after:.4g}", signed(loss.increase, ".2%"), "")
    if one := outputs.answers:
        gained, note = signed(one.converted - one.original, ".4f"), f"{one.tokens:,} tokens"
        yield LossRow("loss of answers", "", f"{one.original:.4f}", f"{one.converted:.4f}", gained, note)


def agreement_rows(outputs: Compared, limits: Limits) -> Iterator[AgreementRow]:
    """Yield the measures of how alike the two are."""
    if isinstance(outputs, EmbeddingsLevel):
        cosines = outputs.cosines
        yield AgreementRow("cosine of embeddings, mean", f"at least {limits.min_cosine:g}", f"{cosines.mean:.4f}")
        yield AgreementRow("cosine of embeddings, least", "", f"{cosines.least:.4f}")
        yield AgreementRow("cosine of a token's last hidden states, mean", "", f"{cosines.tokens:.4f}")
        yield AgreementRow("largest difference of a hidden state", "", f"{cosines.largest_difference:.4g}")
        return
    if isinstance(outputs, HeadLevel):
        if outputs.kl is not None and outputs.same is not None:
            yield AgreementRow("KL divergence, mean, nats", f"at most {limits.max_kl:g}", f"{outputs.kl:.4g}")
            yield AgreementRow("same most likely label", f"at least {share(limits.min_top1)}", share(outputs.same))
        yield AgreementRow("error of the outputs, of their size", "", f"{outputs.error:.4g}")
        yield AgreementRow("largest difference of an output", "", f"{outputs.largest_difference:.4g}")
        return
    kl = outputs.kl
    yield AgreementRow("KL divergence, mean, nats a token", f"at most {limits.max_kl:g}", f"{kl.mean:.4g}")
    yield AgreementRow("KL divergence, 99th percentile", "", f"{kl.p99:.4g}")
    yield AgreementRow("KL divergence, largest", "", f"{kl.largest:.4g}")
    yield AgreementRow("top-1 agreement", f"at least {share(limits.min_top1)}", share(outputs.top1))
    yield AgreementRow("top-5 overlap", "", share(outputs.top5))
    if one := outputs.answers:
        yield AgreementRow("KL divergence of answers, mean, nats a token", "", f"{one.kl:.4g}")
        yield AgreementRow("top-1 agreement of answers", "", share(one.top1))
    for length, part in outputs.agreement.items():
        yield AgreementRow(f"identical greedy text over {length} tokens", "", share(part))
    yield AgreementRow("largest logit difference", "", f"{outputs.largest_logit_difference:.4g}")


def signed(value: float, form: str) -> str:
    """Return a number with its sign, as `form` says."""
    return format(value, f"+{form}").replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    """Return a share in per cent; only what is exactly everything is written as 100 %."""
    return "100%" if value == 1 else f"{min(value, 0.9999):.2%}"
