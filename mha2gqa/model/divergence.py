"""What the logits of models say: the divergence of two distributions, and the loss of what a text goes on with.

    divergence_terms(first, second)            KL of log-probabilities, before it is summed over the vocabulary
    summed_divergence(wanted, answer, counts)  over the positions that count, to train on with the least memory
    mean_divergence(wanted, answer)            over all positions, to train on or to measure
    target_losses(logits, targets)             cross-entropy, to train on or to measure

All in nats. Softmaxes are taken of a few positions at a time: logits are never in fp32 as a whole.

Legend: B blocks of a batch, T tokens of a block, C positions of a chunk, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mha2gqa.model.feed import Logits

_CHUNK = 1 << 22
"""Numbers in one chunk of logits: 16 MB in fp32, of which a handful are alive at a time."""
_CACHED, _ROWS = 1 << 18, 64
"""The same on a CPU, for the second-level cache (23 ms where 32 were needed); but rows enough for a matrix product."""
_MADE_AGAIN = 512
"""Positions of a chunk whose softmaxes are computed a second time for the gradient."""


def divergence_terms(first_BCV: torch.Tensor, second_BCV: torch.Tensor) -> torch.Tensor:
    """Return the terms of KL(first || second) of log-probabilities, which are to be summed over the vocabulary.

    Differentiable in the second. A token that the first rules out adds nothing, whatever the second makes of it.
    """
    return _terms(first_BCV.exp(), first_BCV, second_BCV)


def _terms(p_BCV: torch.Tensor, first_BCV: torch.Tensor, second_BCV: torch.Tensor) -> torch.Tensor:
    terms_BCV = first_BCV - second_BCV
    # Classes may mask a part of the vocabulary with -infinity: that minus itself is none, and so is 0 times infinity.
    return terms_BCV.mul_(p_BCV).masked_fill_(p_BCV == 0, 0.0)


def summed_divergence(
    wanted: Logits, answer_BTV: torch.Tensor, counts_BT: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return the sum over positions of KL(wanted || answer), times the squared temperature; a scalar, fp32.

    Its gradient, q - p, is made in the same pass, chunk by chunk: beside the student's logits and their gradient, which
    every training has, only a chunk of fp32 numbers is in memory, and the original's logits are never there as a whole.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, for the temperature.

    Args:
        wanted: Logits of the original.
        answer_BTV: Logits of the student.
        counts_BT: 1 where a position counts, 0 elsewhere.
        temperature: Divides both logits.
    """
    total: torch.Tensor = _Divergence.apply(answer_BTV, wanted, counts_BT, temperature)  # type: ignore[no-untyped-call]
    return total


class _Divergence(torch.autograd.Function):
    """The summed divergence, with its gradient made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, answer_BTV: torch.Tensor, wanted: Logits, counts_BT: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        blocks, length, vocabulary = answer_BTV.shape
        gradient_BTV = torch.empty_like(answer_BTV) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=answer_BTV.device, dtype=torch.float32)
        step = _positions(blocks, vocabulary, answer_BTV.device)
        for start in range(0, length, step):
            span = slice(start, min(start + step, length))
            counts_BC = counts_BT[:, span].to(answer_BTV.device)
            first_BCV = _log_softmax(wanted(span).to(answer_BTV.device), temperature)
            second_BCV = _log_softmax(answer_BTV[:, span], temperature)
            p_BCV = first_BCV.exp()
            kl_BC = _terms(p_BCV, first_BCV, second_BCV).sum(-1)
            total += temperature**2 * (kl_BC * counts_BC).sum()
            if gradient_BTV is not None:
                gradient_BTV[:, span] = second_BCV.exp_().sub_(p_BCV).mul_(temperature * counts_BC[..., None])
        ctx.save_for_backward(gradient_BTV)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient_BTV,) = ctx.saved_tensors
        return gradient_BTV * upstream[0].to(gradient_BTV.dtype), None, None, None


def _positions(blocks: int, vocabulary: int, device: torch.device) -> int:
    """Return how many positions a chunk has."""
    rows = max(_CACHED // vocabulary, _ROWS) if device.type == "cpu" else _CHUNK // vocabulary
    return max(1, rows // blocks)


def _log_softmax(logits_BCV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    logits_BCV = logits_BCV.float()
    return (logits_BCV if temperature == 1 else logits_BCV / temperature).log_softmax(-1)


def mean_divergence(wanted_BTV: torch.Tensor, answer_BTV: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of KL(wanted || answer), a scalar, fp32.

    Its gradient is autograd's, of chunks that are computed again for it.

    Args:
        wanted_BTV: Logits of the original; no gradient flows there.
        answer_BTV: Logits of the student.
    """
    wanted, answer = wanted_BTV.flatten(0, -2), answer_BTV.flatten(0, -2)
    chunks = zip(wanted.split(_MADE_AGAIN), answer.split(_MADE_AGAIN), strict=True)
    parts = [checkpoint(_summed, one, other, use_reentrant=False) for one, other in chunks]
    total: torch.Tensor = torch.stack(parts).sum() / len(wanted)
    return total


def _summed(wanted_CV: torch.Tensor, answer_CV: torch.Tensor) -> torch.Tensor:
    return divergence_terms(_log_softmax(wanted_CV), _log_softmax(answer_CV)).sum()


def target_losses(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of the targets' losses, chunk by chunk, fp32 `[chunks]`; and over how many targets they are.

    What adds up over many batches should be added in fp64, which not every device has.

    Args:
        logits_BTV: Of a model; differentiable.
        targets_BT: What each position predicts; -100 for nothing.
    """
    targets_BT = targets_BT.to(logits_BTV.device)
    step = max(1, _CHUNK // (logits_BTV.shape[0] * logits_BTV.shape[-1]))
    sums = [
        functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        for logits, targets in zip(logits_BTV.split(step, dim=1), targets_BT.split(step, dim=1), strict=True)
    ]
    return torch.stack(sums), (targets_BT != -100).sum()
