"""Trains all converted attention layers together to give the original's logits: a few hundred steps of Adam.

Layer by layer, each layer is only told what its own output should be; here they also learn which errors
matter. Nothing but the converted attention is trained, in fp32, while the model runs in its own dtype. The
optimiser's state is that of all converted layers at once, so this takes more memory than `distil.py`, and it
needs the gradient through the whole model. Batches kept aside measure it; training that does not help there
is taken back.

Legend: B sequences of a batch, T tokens, C tokens of a chunk, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mha2gqa.refine.distil import DistilOptions, entry_size
from mha2gqa.refine.replay import model_inputs
from mha2gqa.refine.student import install

RATE = 0.02
"""Step size at the start, as a share of the mean absolute entry of each tensor; it falls to zero (cosine)."""
_CHUNK = 512
"""Positions whose logits are in fp32 at a time."""


class Trained(Protocol):
    """A module of which some parameters are trained."""

    @property
    def module(self) -> str:
        """Path in the module tree."""

    @property
    def changed(self) -> Sequence[str]:
        """Its parameters that are trained, without its own name."""


def train_jointly(
    original: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[Trained],
    training_BT: Sequence[torch.Tensor],
    aside_BT: Sequence[torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    options: DistilOptions,
    progress: Callable[[int, int], object],
) -> tuple[float, float]:
    """Train the student's converted attention in place.

    Args:
        original: The teacher.
        student: The converted model; its other weights are the teacher's own, and stay.
        layers: The converted layers.
        training_BT: Token ids to train on.
        aside_BT: Token ids to measure on.
        dtypes: Name of each parameter that is trained -> what the checkpoint's file rounds it to.
        options: Steps and seed.
        progress: Told of every step, and of how many there are.

    Returns:
        The divergence on the batches kept aside, in nats a token, before and after; equal where nothing was gained.
    """
    names = [f"{layer.module}.{name}" for layer in layers for name in layer.changed]
    before = {name: student.get_parameter(name).detach().clone() for name in names}
    first = _mean_divergence(original, student, aside_BT)
    masters = {name: _master(tensor) for name, tensor in before.items()}
    _train(original, student, masters, training_BT, options, progress)
    install(student, {name: master.detach().to(dtypes[name]) for name, master in masters.items()})
    last = _mean_divergence(original, student, aside_BT)
    if last < first:
        return first, last
    install(student, before)
    return first, first


def _master(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy to train, in fp32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True).requires_grad_()


def _train(
    original: PreTrainedModel,
    student: PreTrainedModel,
    masters: Mapping[str, torch.Tensor],
    batches_BT: Sequence[torch.Tensor],
    options: DistilOptions,
    progress: Callable[[int, int], object],
) -> None:
    """Train fp32 copies of parameters, which the student runs with in its own dtype."""
    groups = [{"params": [one], "lr": RATE * entry_size(one)} for one in masters.values()]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / options.steps))
    )
    generator = torch.Generator().manual_seed(options.seed)
    order: list[int] = []
    for _ in range(options.steps):
        order = order or torch.randperm(len(batches_BT), generator=generator).tolist()
        batch = batches_BT[order.pop()]
        with torch.no_grad():
            wanted = original(**model_inputs(original, batch)).logits
        run_with = {name: master.to(student.get_parameter(name).dtype) for name, master in masters.items()}
        answer = functional_call(student, run_with, kwargs=model_inputs(student, batch)).logits
        optimiser.zero_grad()
        divergence(wanted, answer).backward()
        optimiser.step()
        schedule.step()
        progress(1, options.steps)


@torch.no_grad()
def _mean_divergence(original: PreTrainedModel, student: PreTrainedModel, batches_BT: Sequence[torch.Tensor]) -> float:
    values = [
        divergence(original(**model_inputs(original, batch)).logits, student(**model_inputs(student, batch)).logits)
        for batch in batches_BT
    ]
    return float(sum(value.item() for value in values) / len(values))


def divergence(wanted_BTV: torch.Tensor, answer_BTV: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of KL(wanted || answer) in nats, a scalar; fp32, a few positions at a time."""
    wanted, answer = wanted_BTV.flatten(0, -2), answer_BTV.flatten(0, -2)
    parts = [
        checkpoint(_chunk_divergence, one, other, use_reentrant=False)
        for one, other in zip(wanted.split(_CHUNK), answer.split(_CHUNK), strict=True)
    ]
    total: torch.Tensor = torch.stack(parts).sum() / len(wanted)
    return total


def _chunk_divergence(wanted_CV: torch.Tensor, answer_CV: torch.Tensor) -> torch.Tensor:
    wanted, answer = (functional.log_softmax(logits.float(), dim=-1) for logits in (wanted_CV, answer_CV))
    return functional.kl_div(answer, wanted, reduction="sum", log_target=True)
