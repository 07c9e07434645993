"""All layers of latent attention trained together to give the original's logits (`refine/joint.py`), norms folded away.

While they are trained, the student's attention modules stand without the norms that keep the latent tiny in the file
(`modules.py`); what they have learned is brought back at the end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.progress import Advance
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.joint import train_jointly
from mha2gqa.refine.latent.modules import trained_names, with_norms, without_norms


@dataclass(frozen=True)
class _Free:
    """A module without norms, all of which is trained."""

    module: str
    changed: tuple[str, ...]


def train_latent_jointly(
    original: PreTrainedModel,
    student: PreTrainedModel,
    modules: Sequence[str],
    training_BT: Sequence[torch.Tensor],
    aside_BT: Sequence[torch.Tensor],
    options: Descent,
    progress: Advance,
) -> tuple[float, float]:
    """Train the student's attention in place.

    Args:
        original: The teacher.
        student: The host's model, fitted.
        modules: Its attention modules.
        training_BT: Token ids to train on.
        aside_BT: Token ids to measure on.
        options: Steps and seed.
        progress: Told of every step, and of how many there are.

    Returns:
        The divergence on the batches kept aside, in nats a token, before and after; equal where nothing was gained.
    """
    with _norms_away(student, modules) as trained:
        dtypes = {
            f"{one.module}.{name}": student.get_parameter(f"{one.module}.{name}").dtype
            for one in trained
            for name in one.changed
        }
        return train_jointly(original, student, trained, training_BT, aside_BT, dtypes, options, progress)


@contextmanager
def _norms_away(student: PreTrainedModel, modules: Sequence[str]) -> Iterator[list[_Free]]:
    """Let a student's attention modules stand without norms for a while."""
    own = {name: student.get_submodule(name) for name in modules}
    free = {name: without_norms(module, next(module.parameters()).dtype) for name, module in own.items()}
    _put(student, free)
    try:
        yield [_Free(name, tuple(trained_names(module))) for name, module in free.items()]
    finally:
        _put(student, own)
    for name, module in own.items():
        with_norms(module, free[name])


def _put(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)
