"""Trains all converted attention layers together to give the original's logits: a few hundred steps of Adam.

Layer by layer, each layer is only told what its own output should be; here they also learn which errors
matter. Nothing but the converted attention is trained. The optimiser's state is that of all converted layers
at once, so this takes more memory than `distil.py`, and it needs the gradient through the whole model.

Legend: B sequences of a batch, T tokens, C tokens of a chunk, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mha2gqa.calibration.distil import DistilOptions, entry_size
from mha2gqa.calibration.replay import model_inputs
from mha2gqa.families.attention import AttentionLayer

RATE = 0.02
"""Step size at the start, as a share of the mean absolute entry of each tensor; it falls to zero (cosine)."""
_CHUNK = 512
"""Positions whose logits are in fp32 at a time."""


def train_jointly(
    original: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[AttentionLayer],
    batches_BT: Sequence[torch.Tensor],
    options: DistilOptions,
    progress: Callable[[int, int], object],
) -> None:
    """Train the student's converted attention in place.

    Args:
        original: The teacher.
        student: The converted model; its other weights are the teacher's own, and stay.
        layers: The converted layers.
        batches_BT: Token ids.
        options: Steps and seed.
        progress: Told of every step, and of how many there are.
    """
    parameters = _masters(student, layers)
    optimiser = torch.optim.Adam(
        [{"params": [one], "lr": RATE * entry_size(one)} for one in parameters.values()], betas=(0.9, 0.95)
    )
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
        answer = student(**model_inputs(student, batch)).logits
        optimiser.zero_grad()
        divergence(wanted, answer).backward()
        optimiser.step()
        schedule.step()
        progress(1, options.steps)
    for one in parameters.values():
        one.requires_grad_(False)


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


def _masters(student: PreTrainedModel, layers: Sequence[AttentionLayer]) -> dict[str, torch.nn.Parameter]:
    """Return the parameters to train, by name."""
    modules = {layer.module: student.get_submodule(layer.module).float() for layer in layers}
    found = {
        f"{layer.module}.{name}": modules[layer.module].get_parameter(name)
        for layer in layers
        for name in layer.changed
    }
    for parameter in found.values():
        parameter.requires_grad_()
    return found
