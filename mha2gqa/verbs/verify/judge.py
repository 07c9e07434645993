"""Limits and verdict: what a conversion may differ by, and what the three levels add up to.

Without a wish of the user's the limits follow from the conversion. One that leaves the number of KV heads
as it is must change nothing at all. `expand`, and another class for the same model, must change nothing but the
order of additions and the rounding of what was computed, which shows in the last digits, and in 16 bits now and then
in the most likely token. Any other is to be hardly told apart from
its original; who knows what the model is for may ask for more or for less.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace

from mha2gqa.record.conversion import Conversion
from mha2gqa.verbs.verify.levels import EmbeddingsLevel, FileLevel, Finding, LoadLevel, OutputsLevel
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Limits, Verdict

EXACT = Limits(max_ppl_increase=0.0, max_kl=0.0, min_top1=1.0, min_cosine=1.0)
ROUNDING = Limits(max_ppl_increase=0.001, max_kl=0.001, min_top1=0.98, min_cosine=0.9999)
LOSSY = Limits(max_ppl_increase=0.01, max_kl=0.05, min_top1=0.9, min_cosine=0.99)


def limits_for(conversion: Conversion, options: VerifyOptions) -> Limits:
    """Return the limits: the user's, else those that suit the conversion."""
    suited = {"none": EXACT, "rounding": ROUNDING, "loss": LOSSY}[conversion.effect]
    wanted = {name: getattr(options, name) for name in asdict(suited)}
    return replace(suited, **{name: limit for name, limit in wanted.items() if limit is not None})


def limit_findings(level: OutputsLevel, limits: Limits) -> Iterator[Finding]:
    """Yield a finding for each limit that the outputs pass."""
    if level.loss is not None and not level.loss.increase <= limits.max_ppl_increase:
        before, after = level.loss.perplexities
        grown = f"grew by {level.loss.increase:.2%} ({before:.4g} -> {after:.4g})"
        yield _finding("perplexity", f"{grown}; the limit is {limits.max_ppl_increase:.2%}")
    if not level.kl.mean <= limits.max_kl:
        yield _finding("KL divergence", f"is {level.kl.mean:.4g} nats a token; the limit is {limits.max_kl:g}")
    if level.top1 < limits.min_top1:
        yield _finding("top-1 agreement", f"is {level.top1:.2%}; the limit is {limits.min_top1:.2%}")
    if limits.exact and level.largest_logit_difference > 0:
        problem = f"differ by up to {level.largest_logit_difference:.3g}; nothing may differ"
        yield _finding("logits", problem)


def cosine_findings(level: EmbeddingsLevel, limits: Limits) -> Iterator[Finding]:
    """Yield a finding for each limit that the hidden states pass."""
    if not level.cosines.mean >= limits.min_cosine:
        problem = f"is {level.cosines.mean:.4f} in the mean of the blocks; the limit is {limits.min_cosine:g}"
        yield _finding("cosine of embeddings", problem)
    if limits.exact and level.cosines.largest_difference > 0:
        problem = f"differ by up to {level.cosines.largest_difference:.3g}; nothing may differ"
        yield _finding("last hidden states", problem)


def _finding(guilty: str, problem: str) -> Finding:
    return Finding(level="outputs", guilty=guilty, problem=problem)


def judge(
    file: FileLevel | None,
    load: LoadLevel | None,
    outputs: OutputsLevel | EmbeddingsLevel | None,
    wanted_outputs: bool,
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on what was found, and the reasons for it as sentences.

    Args:
        file: The file level, if it was made.
        load: The load level, if it was made.
        outputs: The outputs level, if it was made.
        wanted_outputs: Whether it was asked for; the reasons then say why it is not there.
    """
    levels = [level for level in (file, load, outputs) if level is not None]
    findings = [finding for level in levels for finding in level.findings]
    reasons = [f"{finding.guilty} {finding.problem}." for finding in findings]
    if wanted_outputs and outputs is None:
        reasons.append("The outputs were not compared: " + _why_not(file, load))
    if findings:
        return "different", tuple(reasons)
    if _is_identical(file, outputs):
        return "identical", (f"Nothing differs: {_what_is_identical(outputs)}.", *reasons)
    return "within limits", (_fine(file, load, outputs), *reasons)


def _why_not(file: FileLevel | None, load: LoadLevel | None) -> str:
    if file is not None and not file.readable:
        return "the files are damaged."
    if load is not None and not load.checks[0].passed:
        return "the converted checkpoint does not load."
    return "the original gives no logits for tokens alone."


def _what_is_identical(outputs: OutputsLevel | EmbeddingsLevel | None) -> str:
    if outputs is None:
        return "every tensor is the original's"
    return "no logit differs" if isinstance(outputs, OutputsLevel) else "no hidden state differs"


def _is_identical(file: FileLevel | None, outputs: OutputsLevel | EmbeddingsLevel | None) -> bool:
    if isinstance(outputs, EmbeddingsLevel):
        return outputs.cosines.largest_difference == 0
    if outputs is not None:
        loss = outputs.loss
        same_loss = loss is None or loss.difference == 0
        return same_loss and outputs.kl.largest == 0 and outputs.top1 == 1 and outputs.largest_logit_difference == 0
    return file is not None and file.recomputed == file.checksummed == 0


def _fine(file: FileLevel | None, load: LoadLevel | None, outputs: OutputsLevel | EmbeddingsLevel | None) -> str:
    parts = []
    if file is not None:
        parts.append("the files are what the conversion must have made")
    if load is not None:
        parts.append("the checkpoint runs as its original does")
    if isinstance(outputs, EmbeddingsLevel):
        parts.append(f"the embeddings stay within the limit (cosine {outputs.cosines.mean:.4f})")
    elif outputs is not None:
        gained = "" if outputs.loss is None else f"perplexity changed by {outputs.loss.increase:+.2%}, "
        parts.append(f"the outputs stay within the limits ({gained}KL {outputs.kl.mean:.3g} nats)")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
