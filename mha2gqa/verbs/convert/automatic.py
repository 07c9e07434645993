"""`--method auto`: the cheapest way to convert that keeps the perplexity within a limit.

Each way is carried out, and the converted model is measured on text kept aside, until one is good enough.
None being good enough, the best is taken, and the report says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.refine import Refinement
from mha2gqa.texts.blocks import mean_loss
from mha2gqa.verbs.convert.layerwise import Layerwise, batches

_WAYS: tuple[Refinement | None, ...] = (None, "refit", "distil", "joint")
_DIRECTORIES = {None: "statistics", "refit": "refit", "distil": "distil", "joint": "distil"}
"""Where each way works; all together begins with what each layer alone has learned."""
_KEPT_ASIDE = 8
"""One block in so many measures."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way, and what it cost."""

    refine: str | None
    loss: float
    """Nats a token on the text kept aside."""
    increase: float
    """Of the perplexity over the original's, as a fraction."""


def choose(
    layerwise: Layerwise,
    original: PreTrainedModel,
    blocks_NT: torch.Tensor,
    limit: float,
    options: Descent,
    memory: Callable[[], Activations],
) -> tuple[Layerwise, list[Trial]]:
    """Convert in one way after the other until the perplexity is within the limit.

    Args:
        layerwise: The conversion; each way works in a directory of its own below its files'.
        original: The original.
        blocks_NT: Text; one block in eight is only measured on.
        limit: Largest increase of the perplexity, as a fraction.
        options: Of training.
        memory: Gives a store for activations.

    Returns:
        The conversion that was chosen, and every trial.
    """
    aside = torch.arange(len(blocks_NT)) % _KEPT_ASIDE == 0
    held_out, text = batches(blocks_NT[aside]), blocks_NT[~aside]
    original_loss = mean_loss(original, held_out)
    done: list[tuple[Trial, Layerwise]] = []
    for way in _WAYS:
        attempt = layerwise.beside(_DIRECTORIES[way])
        if way is None:
            attempt.from_statistics(original, text)
        else:
            attempt = attempt.refined(original, text, way, options, memory())
        loss = mean_loss(attempt.student(original), held_out)
        trial = Trial(refine=way, loss=loss, increase=math.expm1(loss - original_loss))
        done.append((trial, attempt))
        if trial.increase <= limit:
            break
    best = min(done, key=lambda one: one[0].loss)
    return best[1], [trial for trial, _ in done]
