"""Trains all converted attention layers together to give the original's logits.

Layer by layer, each layer is only told what its own output should be; here they also learn which errors
matter. Nothing but the converted attention is trained, in fp32, while the model runs in its own dtype. The
optimiser's state is that of all converted layers at once, so this takes more memory than `distil`, and it
needs the gradient through the whole model. The size of the steps is tried first (`rates.py`). Batches kept aside
measure it; training that does not help there is taken back.

Legend: B sequences of a batch, T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from mha2gqa.model.divergence import mean_divergence
from mha2gqa.model.feed import inputs
from mha2gqa.progress import Advance
from mha2gqa.rates import MOST_RATES, best_rate, steps_at_each, try_rates
from mha2gqa.refine.descend import Descent, descend
from mha2gqa.refine.student import install

RATE = 0.04
"""`Descent.rate` that is tried first: smaller than for one layer alone."""
_TOKENS = 4096
"""Of text kept aside that trials of rates are measured on, at most."""


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
        options: Steps and seed; the rate is `RATE` or, where that learns less, a quarter of it or of that.
        advance: Told of every step.

    Returns:
        The divergence on the batches kept aside, in nats a token, before and after; equal where nothing was gained.
    """
    names = [f"{layer.module}.{name}" for layer in layers for name in layer.changed]
    run = _Run(original, student, {name: student.get_parameter(name).detach().clone() for name in names}, dtypes)
    first, steps = run.divergence(aside_BT), steps_at_each(options.steps)
    measured_BT = aside_BT[: max(1, _TOKENS // aside_BT[0].numel())]
    total = options.steps + steps * MOST_RATES

    def learn(rate: float, steps: int) -> None:
        run.train(training_BT, replace(options, rate=rate, steps=steps), lambda done, _: advance(done, total))

    def loss_behind(rate: float) -> float:
        learn(rate, steps)
        return run.divergence(measured_BT)

    trials = try_rates(RATE, run.divergence(measured_BT), loss_behind)
    advance(steps * (MOST_RATES + 1 - len(trials)), total)  # rates that nobody had to try
    learn(best_rate(trials), options.steps)
    last = run.divergence(aside_BT)
    if last < first:
        return first, last
    install(student, run.before)
    return first, first


class _Run:
    """A student, and what it was before."""

    def __init__(
        self,
        original: PreTrainedModel,
        student: PreTrainedModel,
        before: Mapping[str, torch.Tensor],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        self.before = before
        self._original, self._student, self._dtypes = original, student, dtypes

    def train(self, batches_BT: Sequence[torch.Tensor], options: Descent, advance: Advance) -> None:
        """Train from what was before, and install the result."""
        masters = {name: _master(tensor) for name, tensor in self.before.items()}

        def loss(ids_BT: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted_BTV = self._original(**inputs(self._original, ids_BT)).logits
            # The student runs with copies in its own dtype, through which the gradient flows to the fp32 ones.
            run_with = {name: master.to(self.before[name].dtype) for name, master in masters.items()}
            answer_BTV = functional_call(self._student, run_with, kwargs=inputs(self._student, ids_BT)).logits
            return mean_divergence(wanted_BTV, answer_BTV)

        descend([*masters.values()], batches_BT, loss, options, advance)
        install(self._student, {name: master.detach().to(self._dtypes[name]) for name, master in masters.items()})

    @torch.no_grad()
    def divergence(self, batches_BT: Sequence[torch.Tensor]) -> float:
        """Return the mean over batches; infinity where it is no number."""
        models = (self._original, self._student)
        values = [
            mean_divergence(*(model(**inputs(model, ids_BT)).logits for model in models)).item()
            for ids_BT in batches_BT
        ]
        mean = sum(values) / len(values)
        return mean if math.isfinite(mean) else math.inf


def _master(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy to train, in fp32 or more."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True).requires_grad_()
