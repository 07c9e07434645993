"""`uptrain` in words: its plan and its measurements while it runs, and its report."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mha2gqa.sections import Facts, Paragraph, Part, Section, numbers
from mha2gqa.verbs.uptrain.account import NOTHING, of_rounding
from mha2gqa.verbs.uptrain.outcome import TRIED_TOKENS, Losses, UptrainReport


def plan_line(event: Mapping[str, Any]) -> str:
    """Return what is about to be done, from the event `plan`."""
    length = event["length"]
    share = "" if length["alpha"] is None else f", alpha {length['alpha']:.3g}"
    trained = event["parameters"].get("trained")
    what = f"{event['train']} ({trained:,} of {event['parameters']['all']:,} parameters)" if trained else event["train"]
    return (
        f"training {what}, objective {event['objective']}: {length['steps']:,} steps of "
        f"{length['tokens_per_step']:,} tokens ({length['tokens']:,}{share}) of {event['text']}, "
        f"learning rate {event['learning_rate']:g}{tried(event['trials'])}"
    )


def tried(trials: Sequence[Mapping[str, float]]) -> str:
    """Return by what a learning rate was chosen; empty where it was named."""
    if not trials:
        return ""
    losses = ", ".join(f"{one['loss']:.4f} at {one['rate']:.3g}" for one in trials[1:])
    start = f"{trials[0]['loss']:.4f} at the start"
    return f" (on up to {TRIED_TOKENS:,} held-out tokens: {start}, after a few steps {losses})"


def measured(event: Mapping[str, Any]) -> str:
    """Return what was measured, from the event `held-out`."""
    original = "" if event["original"] is None else f", original {event['original']:.4f}"
    gap = "" if event["gap_closed"] is None else f", gap closed {event['gap_closed']:.0%}"
    return f"held-out {event['loss']:.4f}{original}{gap}"


def summary(report: UptrainReport) -> Iterator[Part]:
    """Yield the parts of the report, or of the plan after a dry run."""
    yield Facts(tuple(_facts(report)))
    if report.losses is None:
        yield Paragraph("\nDry run: nothing was trained, nothing was written.")
        return
    yield _losses(report.losses)
    if rounded := of_rounding(report):
        yield Paragraph(f"\n{rounded}")
    if report.step == 0:
        yield Paragraph(f"\n{NOTHING}")
    elif report.is_worse:
        yield Paragraph("\nThe result is worse than what it began with: leave out --keep last, or train otherwise.")
    elif report.losses.gap_closed is not None:
        yield Paragraph(f"\n{report.losses.gap_closed:.1%} of the gap closed.")


def _facts(report: UptrainReport) -> Iterator[tuple[str, str]]:
    length = report.length
    alpha = f", alpha {length.alpha:.3g} of {length.pretraining_tokens:,} tokens" if length.alpha else ""
    sizes, rounds = report.parameters, report.rounds or 0
    share = f", {sizes['trained']:,} of {sizes['all']:,} parameters" if sizes else ""
    repetition = f", {report.text_tokens:,} tokens, read {rounds:.1f} times" if rounds > 1 else ""
    yield "converted", f"{report.converted} ({report.model_type})"
    yield "original", report.original or "not at hand"
    yield "output", str(report.output)
    yield "trained", report.train + share
    chosen = tried([asdict(one) for one in report.trials])
    is_open = "learning_rate" not in report.recipe["trainer"]
    rate = f"to be tried, from {report.learning_rate:g} down" if is_open else f"{report.learning_rate:g}{chosen}"
    yield "objective", f"{report.objective}, learning rate {rate}"
    yield "length", f"{length.steps:,} steps of {length.tokens_per_step:,} tokens: {length.tokens:,}{alpha}"
    yield "text", report.text + repetition
    yield "run", f"{report.processes} process{'es' * (report.processes > 1)} on {report.device}"
    if report.seconds is not None:
        yield "time", f"{report.seconds:.1f} s ({report.tokens_per_second or 0:,.0f} tokens/s, measuring included)"
        yield "weights", f"of step {report.step:,}; {report.changed} tensors changed"
    if report.pushed is not None:
        yield "uploaded", report.pushed
    if report.written:
        yield "next", f"mha2gqa verify {shlex.quote(str(report.output))}"


def _losses(losses: Losses) -> Section:
    content = losses.to_json()
    rows = tuple(
        (name, f"{content[name]:.4f}", f"{content['perplexities'][name]:#.4g}")
        for name in ("before", "after", "original")
        if content[name] is not None
    )
    return Section(numbers(f"\nheld-out, {losses.tokens:,} tokens", "\nloss, nats a token", "\nperplexity"), rows)
