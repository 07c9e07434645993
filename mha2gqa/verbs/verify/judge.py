"""Limits and verdict: what a conversion may differ by, and what the three levels add up to.

Without a wish of the user's the limits follow from the conversion. One that leaves the number of KV heads
as it is must change nothing at all. `expand`, and another class for the same model, must change nothing but the
order of additions and the rounding of what was computed, which shows in the last digits, and in 16 bits now and then
in the most likely token. Any other is to be hardly told apart from
its original; who knows what the model is for may ask for more or for less.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace

from mha2gqa.record.conversion import Conversion
from mha2gqa.targets.target import Effect
from mha2gqa.verbs.verify.levels import (
    Compared,
    EmbeddingsLevel,
    EngineLevel,
    FileLevel,
    Finding,
    HeadLevel,
    LoadLevel,
    OutputsLevel,
)
from mha2gqa.verbs.verify.measures import perplexity
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Limits, Verdict

EXACT = Limits(max_ppl_increase=0.0, max_kl=0.0, min_top1=1.0, min_cosine=1.0)
ROUNDING = Limits(max_ppl_increase=0.001, max_kl=0.001, min_top1=0.98, min_cosine=0.9999)
FORWARD, NOISE = "forward", "forward on noise"
"""Names of the check that a model runs on tokens, and, of those that read pictures or sound, on noise."""
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
    if (answers := level.answers) is not None:
        increase = perplexity(answers.converted - answers.original) - 1
        if not increase <= limits.max_ppl_increase:
            problem = f"grew by {increase:.2%}; the limit is {limits.max_ppl_increase:.2%}"
            yield _finding("perplexity of answers", problem)
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


def head_findings(level: HeadLevel, limits: Limits) -> Iterator[Finding]:
    """Yield a finding for each limit that the outputs of a task's head pass.

    A score has no distribution: its limit is the error of numbers whose cosine is the least that embeddings may have.
    """
    if level.kl is not None and not level.kl <= limits.max_kl:
        yield _finding("KL divergence", f"is {level.kl:.4g} nats in the mean; the limit is {limits.max_kl:g}")
    if level.same is not None and level.same < limits.min_top1:
        yield _finding("same most likely label", f"is {level.same:.2%}; the limit is {limits.min_top1:.2%}")
    largest_error = math.sqrt(max(0.0, 2 - 2 * limits.min_cosine))
    if level.kl is None and not level.error <= largest_error:
        yield _finding("error of the scores", f"is {level.error:.4g} of their size; the limit is {largest_error:.4g}")
    if limits.exact and level.largest_difference > 0:
        yield _finding("outputs of the head", f"differ by up to {level.largest_difference:.3g}; nothing may differ")


def _finding(guilty: str, problem: str) -> Finding:
    return Finding(level="outputs", guilty=guilty, problem=problem)


def judge(
    file: FileLevel | None,
    load: LoadLevel | None,
    engine: EngineLevel | None,
    outputs: Compared | None,
    not_compared: str | None,
    effect: Effect,
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on what was found, and the reasons for it as sentences.

    Args:
        file: The file level, if it was made.
        load: The load level, if it was made.
        engine: What an engine makes of it, if one was asked for.
        outputs: The outputs level, if it was made.
        not_compared: Why it was not, where it was asked for.
        effect: What the conversion may do to outputs: equal tensors are the same model only where that is nothing.
    """
    levels = [level for level in (file, load, engine, outputs) if level is not None]
    findings = [finding for level in levels for finding in level.findings]
    reasons = [f"{finding.guilty} {finding.problem}." for finding in findings]
    if outputs is None and not_compared is not None:
        reasons.append(f"The outputs were not compared: {_why_not(file, load) or not_compared}.")
    if findings:
        return "different", tuple(reasons)
    if file is not None and file.witness:
        reasons.append(f"{file.witness}.")
    if load is not None and load.checks[0].passed is None:
        reasons.append(f"The load is not strict: {load.checks[0].detail}.")
    if outputs is None and not_compared is None and effect != "none":
        reasons.append("How far its outputs are from the original's was not asked.")
    if _is_identical(file, outputs, effect):
        return "identical", (f"Nothing differs: {_what_is_identical(outputs)}.", *reasons)
    return "within limits", (_fine(file, load, outputs), *reasons)


def _why_not(file: FileLevel | None, load: LoadLevel | None) -> str:
    if file is not None and not file.readable:
        return "the files are damaged"
    if load is not None and load.checks[0].passed is False:
        return "the converted checkpoint does not load"
    return ""


def _what_is_identical(outputs: Compared | None) -> str:
    if outputs is None:
        return "every tensor is the original's"
    if isinstance(outputs, HeadLevel):
        return "no output of the head differs"
    return "no logit differs" if isinstance(outputs, OutputsLevel) else "no hidden state differs"


def _is_identical(file: FileLevel | None, outputs: Compared | None, effect: Effect) -> bool:
    if isinstance(outputs, EmbeddingsLevel):
        return outputs.cosines.largest_difference == 0
    if isinstance(outputs, HeadLevel):
        return outputs.largest_difference == 0
    if outputs is not None:
        loss = outputs.loss
        same_loss = loss is None or loss.difference == 0
        return same_loss and outputs.kl.largest == 0 and outputs.top1 == 1 and outputs.largest_logit_difference == 0
    return effect == "none" and file is not None and file.recomputed == file.checksummed == 0


def _fine(file: FileLevel | None, load: LoadLevel | None, outputs: Compared | None) -> str:
    parts = []
    if file is not None:
        by_record = "what the original and the record say" if file.checksummed else "what the conversion must have made"
        parts.append(f"the files are {by_record}")
    if load is not None:
        parts.append(f"the checkpoint {_runs(load)}")
    if isinstance(outputs, EmbeddingsLevel):
        parts.append(f"the embeddings stay within the limit (cosine {outputs.cosines.mean:.4f})")
    elif isinstance(outputs, HeadLevel):
        measured = f"error {outputs.error:.3g}" if outputs.kl is None else f"KL {outputs.kl:.3g} nats"
        parts.append(f"the outputs of the head stay within the limits ({outputs.gives}, {measured})")
    elif outputs is not None:
        gained = "" if outputs.loss is None else f"perplexity changed by {outputs.loss.increase:+.2%}, "
        parts.append(f"the outputs stay within the limits ({gained}KL {outputs.kl.mean:.3g} nats)")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _runs(load: LoadLevel) -> str:
    """Return what the checks that were made have established."""
    passed = {check.name for check in load.checks if check.passed}
    if FORWARD in passed:
        return "runs as its original does"
    loads = "loads strictly" if load.checks[0].passed else "loads as its original does"
    return f"{loads}, and gives finite numbers for noise" if NOISE in passed else f"{loads}, and was not run"
