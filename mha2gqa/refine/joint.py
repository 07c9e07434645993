"""Trains all converted attention layers together to give the original's logits.

Layer by layer, each layer is only told what its own output should be; here they also learn which errors
matter. Nothing but the converted attention is trained, in fp32, while the model runs in its own dtype. The
optimiser's state is that of all converted layers at once, so this takes more memory than `distil`, and it
needs the gradient through the whole model. Batches kept aside measure it; training that does not help there
is taken back.

Legend: B sequences of a batch, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from mha2gqa.model.divergence import mean_divergence
from mha2gqa.model.feed import inputs
from mha2gqa.progress import Advance
from mha2gqa.refine.descend import Descent, descend
from mha2gqa.refine.student import install

RATE = 0.04
"""`Descent.rate` of it: smaller than for one layer alone."""


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
    options: Descent,
    advance: Advance,
) -> tuple[float, float]:
    """Train the student's converted attention in place.

    Args:
        original: The teacher.
        student: The converted model; its other weights are the teacher's own, and stay.
        layers: The converted layers.
        training_BT: Token ids to train on.
        aside_BT: Token ids to measure on.
        dtypes: Name of each parameter that is trained -> what the checkpoint's file rounds it to.
        options: Steps and seed; the rate is `RATE`.
        advance: Told of every step.

    Returns:
        The divergence on the batches kept aside, in nats a token, before and after; equal where nothing was gained.
    """
    names = [f"{layer.module}.{name}" for layer in layers for name in layer.changed]
    before = {name: student.get_parameter(name).detach().clone() for name in names}
    first = _mean_divergence(original, student, aside_BT)
    masters = {name: _master(tensor) for name, tensor in before.items()}

    def loss(ids_BT: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted_BTV = original(**inputs(original, ids_BT)).logits
        # The student runs with copies in its own dtype, through which the gradient flows to the fp32 ones.
        run_with = {name: master.to(before[name].dtype) for name, master in masters.items()}
        answer_BTV = functional_call(student, run_with, kwargs=inputs(student, ids_BT)).logits
        return mean_divergence(wanted_BTV, answer_BTV)

    descend([*masters.values()], training_BT, loss, replace(options, rate=RATE), advance)
    install(student, {name: master.detach().to(dtypes[name]) for name, master in masters.items()})
    last = _mean_divergence(original, student, aside_BT)
    if last < first:
        return first, last
    install(student, before)
    return first, first


def _master(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy to train, in fp32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True).requires_grad_()


@torch.no_grad()
def _mean_divergence(original: PreTrainedModel, student: PreTrainedModel, batches_BT: Sequence[torch.Tensor]) -> float:
    values = [
        mean_divergence(*(model(**inputs(model, ids_BT)).logits for model in (original, student))).item()
        for ids_BT in batches_BT
    ]
    return sum(values) / len(values)
