"""The points of batch and context that are measured, and whether they fit, before anything is loaded."""

from dataclasses import dataclass
from itertools import product

import psutil
import torch

from mha2gqa.errors import TimingError
from mha2gqa.targets.window import windows
from mha2gqa.units import format_size
from mha2gqa.verbs.bench.limits import Costs, Filled
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.subjects import Subjects

CONTEXTS = (1024, 4096, 16384)
"""Context lengths where none is asked for, as far as the model reads."""
_TIMES = (1, 2, 4, 8)
"""The same behind a window that the conversion has set, in times its length."""
TARGET = 32
"""Tokens in the own cache of an encoder-decoder where none are asked for, as far as it writes."""
_PREFILL_ON_CPU = 1024
"""Tokens of a batch of prompts that a CPU reads in seconds."""


@dataclass(frozen=True)
class Grid:
    """What is measured."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    kinds: tuple[str, ...]
    room: int
    """Tokens that a cache needs beyond what it holds when decoding begins."""
    prompts: tuple[tuple[int, int], ...]
    """Batch and tokens of each prompt, or source."""
    target: int | None = None
    """Tokens in an encoder-decoder's own cache, whose contexts are sources; None without an encoder."""
    chunk: int | None = None
    """Tokens of a window that the conversion has set: longer prompts are also read in pieces of as many."""

    @property
    def reads(self) -> list[tuple[int, int, int | None]]:
        """Batch, tokens and chunk of each prompt, or source."""
        longer = ((*one, self.chunk) for one in self.prompts if self.chunk is not None and one[1] > self.chunk)
        return sorted([*((*one, None) for one in self.prompts), *longer], key=lambda one: (one[:2], one[2] or 0))

    @property
    def filled(self) -> list[Filled]:
        """What the caches hold when decoding begins, for each context."""
        return [Filled(one) if self.target is None else Filled(self.target, one) for one in self.contexts]

    @property
    def points(self) -> list[tuple[str, int, Filled]]:
        """Kind of cache, batch and what it holds of each point, the smallest first."""
        return [(kind, batch, filled) for filled, batch, kind in product(self.filled, self.batches, self.kinds)]

    @property
    def longest(self) -> int:
        """The most tokens that a model reads or writes."""
        return max(max(one.own + self.room, one.source) for one in self.filled)


def find_grid(options: BenchOptions, subjects: Subjects, kinds: tuple[str, ...]) -> Grid:
    """Return the grid that the options ask for.

    Raises:
        TimingError: A context is longer than the model reads, or the target is longer, or there is no encoder.
    """
    room = (options.turns + 1) * (options.tokens + 1) + 1
    target = _target(options, subjects, room)
    most, decoded = _most(subjects, encoder=target is not None), room if target is None else 0
    window = _new_window(subjects)
    usual = CONTEXTS if window is None else tuple(window * times for times in _TIMES)
    fitting = [one for one in usual if most is None or one + decoded <= most]
    contexts = options.context or tuple(fitting) or (max(8, (most or 0) // 2),)
    _check_length("--context", max(contexts), decoded, most)
    batches = tuple(sorted(set(options.batch)))
    contexts = tuple(sorted(set(contexts)))
    chunk = window if options.engine == "transformers" and target is None else None
    return Grid(batches, contexts, kinds, room, _prompts(options, subjects.device, batches, contexts), target, chunk)


def _new_window(subjects: Subjects) -> int | None:
    """Return the window of the converted model, where the original has none as long."""
    before, after = ({*windows(one.counted)} for one in subjects.both)
    return min((window for window in after - before if window), default=None)


def _target(options: BenchOptions, subjects: Subjects, room: int) -> int | None:
    """Return the tokens in the decoder's own cache; None where there is no encoder."""
    if not subjects.has_encoder:
        if options.target_context is not None:
            raise TimingError("--target-context is for models with an encoder", expected="--context alone")
        return None
    most = _most(subjects, encoder=False)
    target = options.target_context or (TARGET if most is None else min(TARGET, max(1, most - room)))
    _check_length("--target-context", target, room, most)
    return target


def _check_length(option: str, tokens: int, room: int, most: int | None) -> None:
    if most is not None and tokens + room > most:
        raise TimingError(
            f"{option} {tokens} does not fit the model" + f" with {room} tokens to decode" * bool(room),
            expected=f"at most {most - room} tokens",
            remedy="Name a shorter one" + ", or fewer --tokens or --turns" * bool(room),
        )


def _most(subjects: Subjects, *, encoder: bool) -> int | None:
    """Return how many tokens the encoders or decoders of both models read, where their configs say and it matters."""
    models = [] if subjects.random_weights else [one.model for one in subjects.both]
    texts = [
        model.outline.get_encoder().config.get_text_config(encoder=True) if encoder else model.text_config
        for model in models
    ]
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
    batch, filled = max(grid.batches), grid.filled[-1]
    weights = sides[0].weights + (0 if shared else sides[1].weights)
    caches = [batch * side.cache(filled.with_room(grid.room)) for side in sides]
    needed = weights + sum(caches)
    if needed > free:
        raise TimingError(
            f"Batch {batch} at context {filled.context} does not fit: {format_size(weights)} of weights and "
            f"{' and '.join(map(format_size, caches))} of cache are {format_size(needed)}",
            expected=f"at most {format_size(free)}, which is free",
            remedy="Name smaller ones with --batch and --context, or another --dtype",
        )
