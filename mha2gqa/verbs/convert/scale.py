"""What choices by text have in common: what is chosen, which text measures, and in what.

Legend: N blocks, T tokens of a block.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.methods import demand
from mha2gqa.progress import Progress
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.replay import Replay
from mha2gqa.texts.blocks import mean_loss
from mha2gqa.units import parse_size
from mha2gqa.verbs.convert.layerwise import batches
from mha2gqa.verbs.convert.options import ConvertOptions

PLANS = 4
"""Plans that are measured whole, besides the uniform ones."""
_MEASURED = 16_384
"""Tokens to measure on, where there are twice as many: on 2,048 a gain was seen that other text did not show."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and what was tried."""

    options: ConvertOptions
    """Those that were asked for, with the choice in them."""
    text: str
    trials: list[dict[str, object]]

    def told(self) -> dict[str, object]:
        """Return what the outcome keeps of it."""
        return {"text": self.text, "trials": self.trials}


def settled(options: ConvertOptions, **chosen: Any) -> ConvertOptions:
    """Return options with a choice in them, and text only where what is left to do reads it again."""
    heads = chosen.get("groups", options.groups) is not None
    reads = heads and demand(options.method, options.grouping, options.refine).reads_text
    return replace(options, **chosen, data=options.data if reads else ())


class Scale:
    """Measures models on the same text, as losses above the original's.

    Args:
        options: How much of what the original's blocks return is kept in memory.
        original: The original.
        blocks_NT: The text.
        progress: Told of every model that is measured.
        total: How many there will be.
    """

    def __init__(
        self,
        options: ConvertOptions,
        original: PreTrainedModel,
        blocks_NT: torch.Tensor,
        progress: Progress,
        total: int,
    ) -> None:
        self._batches = batches(blocks_NT)
        self._progress, self._total = progress, total
        self._original = mean_loss(original, self._batches)
        budget = parse_size(options.activation_memory, "--activation-memory") or 0
        self._replay = Replay(original, self._batches, Activations(budget, Path(tempfile.gettempdir())))

    def reach(self, module: str) -> None:
        """Let `behind` begin at the block of an attention module; the original must be as it was given."""
        self._replay.reach(module)

    def __call__(self, model: PreTrainedModel) -> float:
        """Return how much more a model loses than the original, in nats a token."""
        self._progress.stage("choosing", 1, self._total)
        return mean_loss(model, self._batches) - self._original

    def behind(self, model: PreTrainedModel) -> float:
        """Return the same of a model that is the original as far as was reached: those blocks are not run again."""
        self._progress.stage("choosing", 1, self._total)
        return mean_loss(model, self._batches, partial(self._replay.skipping, model=model)) - self._original

    def trial(self, way: str, loss: float) -> dict[str, object]:
        """Return what is told of a plan that was measured whole."""
        return {"way": way, "refine": None, "loss": self._original + loss, "increase": math.expm1(loss)}


def divided(blocks_NT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return blocks to measure on, evenly spaced, and the others."""
    count = min(len(blocks_NT) // 2, math.ceil(_MEASURED / blocks_NT.shape[1]))
    aside = torch.zeros(len(blocks_NT), dtype=torch.bool)
    aside[[number * len(blocks_NT) // count for number in range(count)]] = True
    return blocks_NT[aside], blocks_NT[~aside]


def check_beyond(blocks_NT: torch.Tensor, window: int) -> None:
    """Refuse blocks of text that end within a window, where nothing can be lost.

    Raises:
        CalibrationError: They do.
    """
    if blocks_NT.shape[1] <= window:
        raise CalibrationError(
            f"Blocks of {blocks_NT.shape[1]} tokens end within the window of {window}",
            expected="text and a --context that reach beyond it",
        )
