"""What is learned: the original's distributions, a few positions at a time.

`divergence` is the sum of KL(original || student) over the positions that count. Its gradient is computed in the same
pass, chunk by chunk, so that beside the student's logits and their gradient, which every training has, only a chunk
of fp32 numbers is in memory; the original's logits are never there as a whole. `hidden_error` compares the outputs of
layers. Cross-entropy is the model's own, or a task's.

Legend: B blocks of a batch, T tokens of a block, C positions of a chunk, V vocabulary, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

_CHUNK = 1 << 22
"""Numbers in one chunk of logits: 16 MB in fp32, of which a handful are alive at a time."""
_CACHED, _ROWS = 1 << 18, 64
"""The same on a CPU, for the second-level cache (23 ms where 32 were needed); but rows enough for a matrix product."""

Logits = Callable[[slice], torch.Tensor]
"""Gives `[B, C, V]` for a range of positions."""


def divergence(
    wanted: Logits, answer_BTV: torch.Tensor, counts_BT: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Return the sum over positions of KL(wanted || answer) in nats, times the squared temperature; a scalar, fp32.

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
    """The divergence, with its gradient made in the forward pass."""

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
            # Classes may mask a part of the vocabulary with -infinity, and 0 times infinity is none.
            least = torch.finfo(torch.float32).min
            kl_BC = torch.linalg.vecdot(p_BCV, first_BCV.clamp_min_(least).sub_(second_BCV.clamp_min_(least)))
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


def _log_softmax(logits_BCV: torch.Tensor, temperature: float) -> torch.Tensor:
    logits_BCV = logits_BCV.float()
    return (logits_BCV if temperature == 1 else logits_BCV / temperature).log_softmax(-1)


@torch.no_grad()
def cross_entropy(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the targets' losses in nats (fp64 scalar), and over how many of them.

    Args:
        logits_BTV: Of a model.
        targets_BT: What each position predicts; -100 for nothing.
    """
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    targets_BT = targets_BT.to(logits_BTV.device)
    step = max(1, _CHUNK // (logits_BTV.shape[0] * logits_BTV.shape[-1]))
    for start in range(0, targets_BT.shape[1], step):
        chunk = targets_BT[:, start : start + step]
        logits = logits_BTV[:, start : start + chunk.shape[1]].flatten(0, 1).float()
        total += torch.nn.functional.cross_entropy(logits, chunk.flatten(), reduction="sum").double().cpu()
    return total, (targets_BT != -100).sum().cpu()


def hidden_error(
    wanted_LBTD: Sequence[torch.Tensor], answer_LBTD: Sequence[torch.Tensor], counts_BT: torch.Tensor
) -> torch.Tensor:
    """Return the sum over positions of the layers' squared error relative to the output's energy, mean of layers.

    Args:
        wanted_LBTD: Hidden states of the original, one tensor a layer.
        answer_LBTD: Those of the student.
        counts_BT: 1 where a position counts, 0 elsewhere.
    """
    errors = []
    for wanted_BTD, answer_BTD in zip(wanted_LBTD, answer_LBTD, strict=True):
        wanted, answer = wanted_BTD.to(answer_BTD.device).float(), answer_BTD.float()
        energy = wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(((answer - wanted).square().mean(-1) / energy * counts_BT.to(answer.device)).sum())
    return torch.stack(errors).sum() / max(1, len(errors))


def perplexity(loss: float) -> float:
    """Return exp(loss); infinity where that is too large."""
    return math.exp(loss) if loss < 700 else math.inf
