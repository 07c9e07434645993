"""Latent attention fitted and improved layer by layer, first to last, with the original as the measure.

For each layer: its inputs come from the layers before, which are in their new form already; its target is the original
layer's output on the original's own inputs, in the units of the host's stream. The host is a whole model of its own, so
its modules are called with what its own forward gives them: rotary speeds and masks are the host's. What the layer's
heads are fitted by, moments and attention received, is asked of the original's module: it is given its own call again,
with the host's hidden states in the place of its own.

A step that does not help on batches kept aside is taken back (`refine/refine.py`). A finished layer is written at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.progress import Progress
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent, distil
from mha2gqa.refine.latent.files import LatentFiles
from mha2gqa.refine.latent.modules import trained_names, with_norms, without_norms
from mha2gqa.refine.latent.refit import refit_latent
from mha2gqa.refine.refine import Refinement, Steps, count_aside
from mha2gqa.refine.replay import Call, Example, Replay
from mha2gqa.refine.statistics import Moments, eager
from mha2gqa.refine.student import install, own_tensors
from mha2gqa.targets.latent.fit import Fitted, fit
from mha2gqa.targets.latent.linear import linear
from mha2gqa.targets.latent.tensors import Folding

RATE = 0.06
"""`Descent.rate` of `distil`. The reference, 256 wide, to an eighth of its cache loses .051 with it (0.03 of an entry)
and .057 with 0.2; to a quarter .009, and .015 with 0.2, which three of four layers do not bear."""
_SHARES = (1.0, 0.3, 0.1)
"""Of the rate, tried until one helps: little text bears small steps alone."""


class LatentRefiner:
    """Fits and refines the layers of a student.

    Args:
        original: The original.
        student: The host's model around its weights (`build_latent_student`); its attention is filled in place.
        files: Where finished layers are written; they know the host.
        batches_BT: Calibration text; all batches of one shape.
        refinement: How far to go; `joint` goes as far as `distil` here.
        options: Of the training.
        memory: Where activations are kept.
    """

    def __init__(
        self,
        original: PreTrainedModel,
        student: PreTrainedModel,
        files: LatentFiles,
        batches_BT: Sequence[torch.Tensor],
        refinement: Refinement | None,
        options: Descent,
        memory: Activations,
    ) -> None:
        self._original, self._student, self._files, self._host = original, student, files, files.host
        self._teacher_run = Replay(original, batches_BT, memory)
        self._student_run = Replay(student, batches_BT, memory)
        self._refinement, self._options = refinement, options
        self._fold = Folding.of(files.host.source.facts)

    def run(self, progress: Progress) -> None:
        """Fit and refine every layer in order; those that are written already are taken over.

        Args:
            progress: Told of each finished layer.
        """
        layers, files = self._host.source.layers, self._files
        for number, layer in enumerate(layers):
            if not files.has(number):
                with progress.under_way(layer.module):
                    for run in (self._teacher_run, self._student_run):
                        run.reach(layer.module)
                    files.write(number, *self._layer(layer))
            install(self._student.get_submodule(layer.module), files.read(number))
            progress.layer(layer.module, files.report(number)["errors"], number + 1, len(layers))

    def _layer(self, layer: AttentionLayer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return a finished layer's tensors by their names in its module, and what is to be told of it."""
        module = self._student.get_submodule(layer.module)
        calls = list(self._student_run.calls(layer.module))
        outputs = (self._in_stream(one) for one in self._teacher_run.outputs(layer.module))
        examples: list[Example] = list(zip(calls, outputs, strict=True))
        # As for heads (`refine/refine.py`): what is fitted must not know the text by which a refinement is held to it.
        known = self._statistics(layer, calls, count_aside(len(calls)) if self._refinement else 0)
        fitted = self._fit(layer, known)
        tensors = self._host.attention(layer, fitted.heads, known)
        steps = Steps(module, examples, dict.fromkeys(tensors, self._host.dtype), self._student.device)
        steps.take("fitted", lambda: install(module, tensors))
        if self._refinement is not None:
            texts, device = (steps.training, steps.aside), self._student.device
            steps.take("refit", partial(refit_latent, module, self._host.shape, *texts, device))
        if self._refinement not in (None, "refit"):
            steps.take("distil", *[partial(self._distil, module, steps, share) for share in _SHARES])
        found = {name: module.get_parameter(name).detach() for name in tensors}
        return found, {"module": layer.module, "errors": steps.errors, **fitted.losses}

    def _fit(self, layer: AttentionLayer, known: Statistics) -> Fitted:
        source = self._host.source
        heads = source.heads(layer, own_tensors(self._original, layer))
        return fit(heads, known, self._host.key, self._host.latent, source.scaling(layer))

    def _in_stream(self, output_BTD: torch.Tensor) -> torch.Tensor:
        """Return an output of the original's module in the units of the host's stream."""
        return self._fold.written(output_BTD, self._fold.branch, outputs=-1).to(output_BTD.dtype)

    def _statistics(self, layer: AttentionLayer, calls: Sequence[Call], aside: int) -> Statistics:
        """Ask the original's module, given the student's inputs, what it is given and what its heads read.

        Args:
            layer: The layer.
            calls: Of the student's module, one for each batch.
            aside: How many of the first are left out.
        """
        moments, lift = Moments(layer), linear(self._host.dtype).lift
        module = self._original.get_submodule(layer.module)
        with torch.no_grad(), eager(self._original), moments.watching(self._original):
            for own, call in itertools.islice(
                zip(self._teacher_run.calls(layer.module), calls, strict=True), aside, None
            ):
                _reading(own, call, lift).run(module, self._original.device)
        return moments.statistics()

    def _distil(self, module: nn.Module, steps: Steps, share: float) -> None:
        free, options = without_norms(module, torch.float32), replace(self._options, rate=share * self._options.rate)
        distil(free, trained_names(free), steps.training, options, self._student.device)
        with_norms(module, free)


def _reading(call: Call, other: Call, lift: float) -> Call:
    """Return a call with `lift` times the hidden states of another: what comes first, or goes by that name."""
    hidden = lift * (other.kwargs["hidden_states"] if "hidden_states" in other.kwargs else other.args[0])
    if "hidden_states" in call.kwargs:
        return replace(call, kwargs=call.kwargs | {"hidden_states": hidden})
    return replace(call, args=(hidden, *call.args[1:]))
