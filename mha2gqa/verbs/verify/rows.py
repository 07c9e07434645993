"""The numbers of a `Verification`'s outputs in words, row by row of the page's tables, each beside its limit."""

from collections.abc import Iterator
from typing import NamedTuple

from mha2gqa.verbs.verify.levels import EmbeddingsLevel, OutputsLevel
from mha2gqa.verbs.verify.outcome import Limits


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


def agreement_rows(outputs: OutputsLevel | EmbeddingsLevel, limits: Limits) -> Iterator[AgreementRow]:
    """Yield the measures of how alike the two are."""
    if isinstance(outputs, EmbeddingsLevel):
        yield from _cosines(outputs, limits)
        return
    kl = outputs.kl
    yield AgreementRow("KL divergence, mean, nats a token", f"at most {limits.max_kl:g}", f"{kl.mean:.4g}")
    yield AgreementRow("KL divergence, 99th percentile", "", f"{kl.p99:.4g}")
    yield AgreementRow("KL divergence, largest", "", f"{kl.largest:.4g}")
    yield AgreementRow("same most likely token", f"at least {share(limits.min_top1)}", share(outputs.top1))
    yield AgreementRow("five most likely tokens in common", "", share(outputs.top5))
    yield AgreementRow("largest logit difference", "", f"{outputs.largest_logit_difference:.4g}")


def _cosines(embeddings: EmbeddingsLevel, limits: Limits) -> Iterator[AgreementRow]:
    cosines = embeddings.cosines
    yield AgreementRow("cosine of embeddings, mean", f"at least {limits.min_cosine:g}", f"{cosines.mean:.4f}")
    yield AgreementRow("cosine of embeddings, least", "", f"{cosines.least:.4f}")
    yield AgreementRow("cosine of a token's last hidden states, mean", "", f"{cosines.tokens:.4f}")
    yield AgreementRow("largest difference of a hidden state", "", f"{cosines.largest_difference:.4g}")


def signed(value: float, form: str) -> str:
    """Return a number with its sign, as `form` says."""
    return format(value, f"+{form}").replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    """Return a share in per cent; only what is exactly everything is written as 100 %."""
    return "100%" if value == 1 else f"{min(value, 0.9999):.2%}"
