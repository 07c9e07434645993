"""The outputs level of `verify` for task heads: labels or scores of texts or tokens, and spans that answer.

What such a head gives is no guess about tokens, so neither a loss on text nor a perplexity means anything. Its own
outputs are compared: distributions of labels (of several at a time where each is decided alone), or of the places
where an answer begins and ends; a single score, as of a reward model, as the number that it is.

Legend: B blocks of a batch, T tokens of a block, L labels, N distributions.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.model.divergence import divergence_terms
from mha2gqa.model.feed import attempt, inputs
from mha2gqa.model.kind import kind_of
from mha2gqa.progress import Advance
from mha2gqa.verbs.verify.judge import head_findings
from mha2gqa.verbs.verify.levels import HeadLevel
from mha2gqa.verbs.verify.load_level import Models
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Limits
from mha2gqa.verbs.verify.outputs_level import EvaluationText, batches, describe_text, layer_errors, read_pairs

_GIVES = {"text": "{} for a text", "each token": "{} for each token", "span": "where an answer begins and ends"}


@dataclass
class HeadSums:
    """What the outputs read so far say."""

    divergences: list[torch.Tensor] = field(default_factory=list)
    """Of each distribution, fp64; empty for scores."""
    same: int = 0
    error: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, original: torch.Tensor, converted: torch.Tensor, *, each_alone: bool) -> None:
        """Take the outputs of a batch, whose last dimension a distribution is over; of length 1 it is a score.

        Args:
            original: Logits of the original.
            converted: Logits of the converted model.
            each_alone: Whether every logit is decided alone, by its sign.
        """
        first, second = original.double().cpu(), converted.double().cpu()
        difference = first - second
        self.error += difference.square().sum().item()
        self.squares += first.square().sum().item()
        self.largest = max(self.largest, difference.abs().max().item())
        if each_alone:
            first, second = (torch.stack([one, torch.zeros_like(one)], dim=-1) for one in (first, second))
        if first.shape[-1] == 1:
            return
        self.same += int((first.argmax(-1) == second.argmax(-1)).sum())
        terms = divergence_terms(first.log_softmax(-1), second.log_softmax(-1))
        self.divergences.append(terms.sum(-1).flatten())

    @property
    def relative_error(self) -> float:
        """||converted - original|| / ||original|| of all outputs."""
        return float((self.error / max(self.squares, 1e-300)) ** 0.5)


@torch.inference_mode()
def compare_head(
    models: Models, text: EvaluationText, limits: Limits, options: VerifyOptions, advance: Advance
) -> HeadLevel | str:
    """Compare what the heads of both models give for the same tokens.

    Args:
        models: The original and the converted checkpoint, which have the head of a task.
        text: The tokens, as `find_text` gives them.
        limits: What they may differ by.
        options: How many blocks are run at a time.
        advance: Told of every batch, in tokens.

    Returns:
        The level, or why the original does not run on tokens alone.

    Raises:
        PairError: The converted checkpoint cannot be run.
    """
    started = time.monotonic()
    ids_NT = text.blocks.tokens_NT
    original, kind = models.original, kind_of(models.original)
    each_alone = getattr(original.config, "problem_type", None) == "multi_label_classification"
    probed = attempt(lambda: _outputs(original, ids_NT[:1]))
    if isinstance(probed, str):
        return f"the original does not run on tokens alone ({probed})"
    layers, sums = layer_errors(models), HeadSums()
    cut = batches(ids_NT, 1 if kind.head == "text" else options.batch_size)
    for first, second in read_pairs(_outputs, models, layers, cut, advance):
        sums.add(first, second, each_alone=each_alone and kind.head != "span")
    labels = f"{probed.shape[-1]} labels" if probed.shape[-1] > 1 else "a score"
    has_labels, divergences_N = bool(sums.divergences), torch.cat(sums.divergences or [torch.zeros(1)])
    level = HeadLevel(
        text=describe_text(text.blocks, ids_NT.numel()),
        gives=_GIVES[kind.head].format(labels),
        kl=divergences_N.mean().item() if has_labels else None,
        same=sums.same / len(divergences_N) if has_labels else None,
        error=sums.relative_error,
        largest_difference=sums.largest,
        layers=layers.results(),
        dtype=models.dtype,
        device=original.device.type,
        seconds=time.monotonic() - started,
        findings=(),
    )
    return replace(level, findings=tuple(head_findings(level, limits)))


def _outputs(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Return a head's outputs: `[B, L]` of a text, `[B, T, L]` of each token, `[B, 2, T]` of a span's two ends."""
    kind = kind_of(model)
    end = getattr(model.config, "eos_token_id", None)
    if kind.has_encoder and kind.head == "text" and isinstance(end, int):
        ids_BT = ids_BT.index_fill(1, torch.tensor([ids_BT.shape[1] - 1]), end)  # what the head of these reads
    fed = inputs(model, ids_BT) | {"attention_mask": torch.ones_like(ids_BT).to(model.device)}
    output: Any = model(**fed)
    if kind.head == "span":
        return torch.stack([output.start_logits, output.end_logits], dim=1)
    logits: torch.Tensor = output.logits
    return logits
