"""The points of batch and context that are measured, and whether they fit, before anything is loaded."""

from dataclasses import dataclass
from itertools import product

import psutil
import torch

from mha2gqa.checkpoint.sizes import format_size, parse_size
from mha2gqa.errors import TimingError
from mha2gqa.families.blueprint import blueprint
from mha2gqa.options import BenchOptions
from mha2gqa.timing.limits import Costs
from mha2gqa.timing.subjects import Subjects

CONTEXTS = (1024, 4096, 16384)
"""Context lengths where none is asked for, as far as the model reads."""
_PREFILL_ON_CPU = 1024
"""Tokens of a batch of prompts that a CPU reads in seconds."""


@dataclass(frozen=True)
class Grid:
    """What is measured."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    kinds: tuple[str, ...]
    room: int
    """Tokens that a cache needs beyond its context."""
    prompts: tuple[tuple[int, int], ...]
    """Batch and tokens of each prompt."""

    @property
    def points(self) -> list[tuple[str, int, int]]:
        """Kind of cache, batch and context of each point, the smallest first."""
        return [(kind, batch, context) for context, batch, kind in product(self.contexts, self.batches, self.kinds)]


def find_grid(options: BenchOptions, subjects: Subjects, kinds: tuple[str, ...]) -> Grid:
    """Return the grid that the options ask for.

    Raises:
        TimingError: A context is longer than the model reads.
    """
    room = (options.turns + 1) * (options.tokens + 1) + 1
    most = None if subjects.random_weights else _most(subjects)
    fitting = [one for one in CONTEXTS if most is None or one + room <= most]
    contexts = options.context or tuple(fitting) or (max(8, (most or 0) // 2),)
    longest = max(contexts) + room
    if most is not None and longest > most:
        raise TimingError(
            f"--context {max(contexts)} does not fit the model with {room} tokens to decode",
            expected=f"at most {most - room} tokens",
            remedy="Name a shorter one, or fewer --tokens or --turns",
        )
    batches = tuple(sorted(set(options.batch)))
    contexts = tuple(sorted(set(contexts)))
    return Grid(batches, contexts, kinds, room, _prompts(options, subjects.device, batches, contexts))


def _most(subjects: Subjects) -> int | None:
    """Return how many tokens both models read, where their configs say."""
    texts = (blueprint(one.config_json).config.get_text_config(decoder=True) for one in subjects.both)
    known = [most for text in texts if isinstance(most := getattr(text, "max_position_embeddings", None), int)]
    return min((most for most in known if most > 1), default=None)


def _prompts(
    options: BenchOptions, device: str, batches: tuple[int, ...], contexts: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    most = options.prefill_tokens or (_PREFILL_ON_CPU if device == "cpu" else None)
    found = {
        (batch, max(1, min(context, most // batch) if most else context))
        for context, batch in product(contexts, batches)
    }
    return tuple(sorted(found))


def free_memory(device: str) -> int:
    """Return the bytes that are free on a device; of MPS, which shares the machine's, what the machine has."""
    if device == "cpu" or device.startswith("mps"):
        return int(psutil.virtual_memory().available)
    return int(torch.accelerator.get_memory_info(device)[0])


def fitting_memory(options: BenchOptions, free: int) -> int:
    """Return the bytes that the largest batch may fill.

    Raises:
        OutputError: `--memory` is no size.
    """
    return parse_size(options.memory, "--memory") or free


def check_fits(grid: Grid, sides: tuple[Costs, Costs], free: int, *, shared: bool) -> None:
    """Refuse a grid whose largest point does not fit beside the weights of both models.

    Args:
        grid: The points.
        sides: Original and converted.
        free: Bytes that are free.
        shared: Whether the second model has the first one's weights.

    Raises:
        TimingError: It does not fit; the message says the bytes.
    """
    batch, context = max(grid.batches), max(grid.contexts)
    weights = sides[0].weights + (0 if shared else sides[1].weights)
    caches = [batch * side.cache(context + grid.room) for side in sides]
    needed = weights + sum(caches)
    if needed > free:
        raise TimingError(
            f"Batch {batch} at context {context} does not fit: {format_size(weights)} of weights and "
            f"{' and '.join(map(format_size, caches))} of cache are {format_size(needed)}",
            expected=f"at most {format_size(free)}, which is free",
            remedy="Name smaller ones with --batch and --context, or another --dtype",
        )
