"""What a method that makes use of text reads where none was named: what the model writes itself.

A guess of the inputs from the weights loses far more on real models than text of any kind does, and every model that
continues text has some. Decided before anything runs, so that a plan can say it: the model's kind, its weights and the
memory that is free tell whether it can be run here.
"""

import math
from dataclasses import dataclass, replace

import psutil
import torch

from mha2gqa.files.quantised import quantisation
from mha2gqa.methods import demand, find_method
from mha2gqa.model.devices import placement
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import context_length
from mha2gqa.model.original import Original
from mha2gqa.texts.words import NONE, SELF
from mha2gqa.verbs.convert.options import ConvertOptions

TOKENS = 8192
"""That the model writes. SmolLM2-135M then loses a quarter of what it does by the guess, and 1.4 times what it does by
as many of other text."""
_BLOCK = 256
"""Tokens that are written one behind the other: blocks are written side by side, and each token of one takes a step."""
_SPEED = 2e10
"""Operations a second of one core of a processor, to tell how long it takes."""
_BESIDE = 1.5
"""Memory that a model takes while it runs, in multiples of its weights."""
_TIMES = 3
"""To write and to read, in forward passes of as many tokens."""


@dataclass(frozen=True)
class OwnText:
    """What was decided."""

    options: ConvertOptions
    """Those that were asked for, with the text that is read."""
    note: str = ""
    """What the plan says of it; nothing where text was named, or the method makes no use of any."""

    @property
    def is_written(self) -> bool:
        """Whether the model writes, without having been asked to."""
        return bool(self.note) and SELF in self.options.data


def decide(options: ConvertOptions, original: Original) -> OwnText:
    """Have the model write where nothing was said of text, the method makes use of it, and the model can run here."""
    needs_text = demand(options.method, options.grouping, options.refine).needs_text
    if options.data or needs_text or not find_method(options.method).reads_text:
        return OwnText(options)
    if why := _hindrance(options, original):
        return guessed(options, why)
    context = options.context or min(_BLOCK, context_length(original.architecture.outline.config, None))
    tokens = min(options.tokens, TOKENS)
    parameters = sum(math.prod(info.shape) for info in original.tensors)
    minutes = math.ceil(2 * parameters * tokens * _TIMES / _SPEED / 60)
    note = (
        f"The model first writes {tokens:,} tokens, by which heads are merged: up to {minutes} "
        f"minute{'s' * (minutes > 1)} on a processor. Text like what it was trained on is better (--data), and "
        "--data random takes seconds to minutes, and --data none guesses from the weights alone."
    )
    return OwnText(replace(options, data=(SELF,), tokens=tokens, context=context), note)


def guessed(options: ConvertOptions, why: str) -> OwnText:
    """Return the same without text, and what is to be said of it."""
    note = f"No text was read, and what goes into the layers was guessed from the weights: {why}."
    return OwnText(replace(options, data=(NONE,)), note)


def _hindrance(options: ConvertOptions, original: Original) -> str:
    """Return why the model cannot write here; empty where it can."""
    kind = kind_of(original.architecture.outline)
    if not (kind.continues_text and kind.reads_tokens):
        return f"a {kind.name} does not continue text"
    if quantisation(original.config_json) is not None:
        return "the weights are quantised"
    if not _fits(options, original):
        return "the model does not fit into the memory that is free here"
    return ""


def _fits(options: ConvertOptions, original: Original) -> bool:
    """Return whether a model and what it computes are likely to fit in the memory of where it would be run."""
    place = placement(original.directory, dtype=options.dtype, device=options.device)
    size = sum(info.size * _growth(info.dtype, place.dtype) for info in original.tensors)
    on_cpu = place.device in ("cpu", "auto")
    free = psutil.virtual_memory().available if on_cpu else torch.accelerator.get_memory_info(place.device)[0]
    return _BESIDE * size <= free


def _growth(stored: str, wanted: torch.dtype | None) -> float:
    of_file = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(stored)
    return wanted.itemsize / of_file if wanted is not None and of_file else 1.0
