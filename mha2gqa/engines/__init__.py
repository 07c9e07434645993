"""Engines that others wrote, which run a finished checkpoint. NEW ENGINE = ONE FILE + ONE LINE.

    engine = open_engine("llama.cpp", Setup(directory=..., length=128))
    engine.follow([5, 6, 7], top=20)       what it finds likely after each of them
    engine.write([5, 6, 7], 24)            what it writes, greedily

`verify` holds them against transformers, and `bench` has some decode against the clock. None of their packages is ours
to install: each is an extra, and is imported when its engine is opened. `printed.py` hears what they print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from mha2gqa.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How an engine is to be opened."""

    directory: Path
    """A checkpoint."""
    dtype: str
    """Of its cache, and of its weights where the engine may choose: `float32`, ..."""
    length: int
    """Tokens that a sequence may have."""
    threads: int = 1
    seed: int = 0
    tells: bool = False
    """Whether it is to print what it does, the size of its cache above all."""
    share: float = 0.45
    """Of an accelerator's memory, for engines that take it all at once."""


@dataclass(frozen=True)
class Cache:
    """What an engine says of its cache."""

    told: str
    """In its own words."""
    per_token: float | None
    """Bytes that a token takes by what it says; None where that does not follow."""


class Engine(Protocol):
    """A model that an engine has loaded."""

    def follow(self, ids: Sequence[int], top: int) -> list[dict[int, float]]:
        """Return the logarithms of the probabilities of the `top` likeliest tokens after each of `ids`."""

    def write(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Return the tokens that follow greedily, whatever ends a text."""

    def cache(self, printed: str) -> Cache:
        """Return what it says of its cache, by what it has printed since it was opened."""

    def seconds(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Return how long `new` tokens of each of the prompts take."""

    def close(self) -> None:
        """Let go of the model."""


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What is known of an engine before it is opened."""

    module: str
    """That its package is imported as."""
    package: str
    """As pip knows it."""
    file: str
    """Here, and its class in there."""
    batches: bool = False
    """Whether it runs several sequences at a time here."""


ENGINES: Mapping[str, EngineKind] = MappingProxyType(
    {
        "llama.cpp": EngineKind(module="xllamacpp", package="xllamacpp", file="llama_cpp:LlamaCpp"),
        "vllm": EngineKind(module="vllm", package="vllm", file="vllm:Vllm", batches=True),
        "mlx": EngineKind(module="mlx_lm", package="mlx-lm", file="mlx:Mlx"),
    }
)


def check_installed(name: str) -> None:
    """Refuse an engine that is not there.

    Raises:
        EngineError: Its package is not installed.
    """
    kind = ENGINES[name]
    if find_spec(kind.module) is None:
        raise EngineError(
            f"--engine {name} needs the package {kind.package}, which is not installed",
            remedy=f"Install it (pip install {kind.package}), or leave --engine out",
        )


def distribution(name: str) -> str:
    """Return the package that an engine was installed by, which may have a name of its own for a CPU."""
    kind = ENGINES[name]
    return packages_distributions().get(kind.module, [kind.package])[0]


def open_engine(name: str, setup: Setup) -> Engine:
    """Have an engine load a checkpoint.

    Raises:
        EngineError: It is not installed, or does not take the checkpoint.
    """
    check_installed(name)
    file, _, kind = ENGINES[name].file.partition(":")
    engine: Engine = getattr(import_module(f"mha2gqa.engines.{file}"), kind)(setup)
    return engine
