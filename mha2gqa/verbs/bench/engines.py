"""Which engine runs the models: refused before anything is loaded, or opened with both.

    transformers    in this process, each cache and attention implementation by name (`transformers_engine.py`)
    the others      `mha2gqa.engines`: two checkpoints, each engine with its own cache and attention

The others decode greedily, and have no call for a single step: the time of one is what more tokens take beyond the
first, through their number. vLLM was not timed where this was written: it wants an accelerator, and there was none.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mha2gqa import engines
from mha2gqa.engines.printed import heard
from mha2gqa.errors import TimingError
from mha2gqa.verbs.bench.asked import OWN
from mha2gqa.verbs.bench.attention import use_attention
from mha2gqa.verbs.bench.grid import Grid
from mha2gqa.verbs.bench.limits import Filled
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.subjects import Subjects
from mha2gqa.verbs.bench.transformers_engine import EncoderDecoderEngine, TransformersEngine

GRAPHS = ("cuda", "xpu")
"""Devices on which `generate` compiles the decode step of a static cache."""


class Decoding(Protocol):
    """A batch of sequences with a filled cache."""

    @property
    def cache_bytes(self) -> int | None:
        """Bytes that the cache takes; None where the engine does not say."""

    def turn(self, tokens: int) -> list[float]:
        """Decode `tokens` tokens of each sequence greedily, and return the seconds of each step, or their mean."""


class Engine(Protocol):
    """A loaded model."""

    def prefill(self, batch: int, tokens: int, chunk: int | None = None) -> float:
        """Return the seconds from a batch of prompts, or of sources, to the first new token of each.

        Args:
            batch: How many.
            tokens: Of each.
            chunk: How many are read at a time; None reads them all at once, and alone is asked of other engines.
        """

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        """Return the most bytes that the cache occupies meanwhile; None where the engine does not say."""

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> Decoding:
        """Return a batch with as many tokens in its caches, and room for `room` more of the decoder."""


@dataclass(frozen=True)
class Running:
    """Both models, loaded."""

    engines: tuple[Engine, Engine]
    attention: str
    compiled: bool
    packages: tuple[str, ...] = ()
    """Whose versions matter beside torch's and transformers'."""


def check_encoder(options: BenchOptions, subjects: Subjects) -> None:
    """Refuse an engine that does not run models with an encoder.

    Raises:
        TimingError: It does not.
    """
    if subjects.has_encoder and options.engine != "transformers":
        raise TimingError(
            f"--engine {options.engine} runs decoders alone here, and {subjects.original.name} has an encoder",
            expected="--engine transformers",
        )


def open_engines(options: BenchOptions, subjects: Subjects, grid: Grid) -> Running:
    """Load both models.

    Raises:
        TimingError: The attention implementation is not for this class.
        EngineError: The engine does not take a checkpoint.
        Mha2GqaError: A checkpoint does not load.
    """
    if options.engine == "transformers":
        models = subjects.load(options.seed)
        first, second = (use_attention(model, options.attention) for model in models)
        on_graphs = subjects.device.startswith(GRAPHS)
        kind = EncoderDecoderEngine if subjects.has_encoder else TransformersEngine
        both = (kind(models[0], options.seed), kind(models[1], options.seed))
        return Running(both, first if first == second else f"{first}, {second}", on_graphs)
    size = min(one.model.vocabulary for one in subjects.both)
    known = engines.ENGINES[options.engine]
    first_one, second_one = (
        Prompted(_open(options, subjects, Path(str(one.directory)), grid.longest), size, options.seed)
        for one in subjects.both
    )
    return Running(
        (first_one, second_one), OWN, compiled=known.module == "vllm", packages=(engines.distribution(options.engine),)
    )


def _open(options: BenchOptions, subjects: Subjects, directory: Path, length: int) -> engines.Engine:
    setup = engines.Setup(
        directory=directory,
        dtype=str(subjects.dtype).removeprefix("torch."),
        length=length,
        threads=torch.get_num_threads(),
        seed=options.seed,
    )
    with heard():
        return engines.open_engine(options.engine, setup)


class Prompted:
    """A model that an engine of others runs, which is asked for whole texts alone."""

    def __init__(self, engine: engines.Engine, vocabulary: int, seed: int) -> None:
        self._engine, self._vocabulary = engine, vocabulary
        self._generator = random.Random(seed)  # noqa: S311 - prompts, not secrets

    def _prompts(self, batch: int, tokens: int) -> list[list[int]]:
        return [[self._generator.randrange(self._vocabulary) for _ in range(tokens)] for _ in range(batch)]

    def prefill(self, batch: int, tokens: int, chunk: int | None = None) -> float:
        """Return the seconds from a batch of prompts to the first new token of each; engines cut them as they like."""
        return self._engine.seconds(self._prompts(batch, tokens), 1)

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        """Return None: engines make the whole cache before they read anything."""
        return None

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "PromptedBatch":
        """Return a batch of prompts of as many tokens; the engine keeps their caches itself."""
        return PromptedBatch(self._engine, self._prompts(batch, filled.own))


class PromptedBatch:
    """Prompts that are given again in every turn, whether the engine reads them again or has kept their cache."""

    cache_bytes: int | None = None

    def __init__(self, engine: engines.Engine, prompts: list[list[int]]) -> None:
        self._engine, self._prompts = engine, prompts

    def turn(self, tokens: int) -> list[float]:
        """Return the mean seconds of `tokens` steps beyond the first token."""
        first = self._engine.seconds(self._prompts, 1)
        all_of_them = self._engine.seconds(self._prompts, tokens + 1)
        return [(all_of_them - first) / tokens]
