"""Runs the GGUF file of a checkpoint by llama-cpp-python, greedy, one sequence at a time.

The file stands beside the weights of the checkpoint; llama.cpp's own `convert_hf_to_gguf.py` makes it. Its weights are
of the file's dtype, its cache of the one that is asked for.
"""

import random
import time
from pathlib import Path
from typing import Any

import torch

from mha2gqa.errors import TimingError
from mha2gqa.verbs.bench.engine import Filled

_GGML_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}
"""Dtype -> number in `ggml_type`."""


class LlamaCppEngine:
    """A model that llama.cpp runs."""

    def __init__(self, directory: Path, dtype: str, length: int, vocabulary: int, seed: int) -> None:
        """Load the one GGUF file in `directory`.

        Raises:
            TimingError: There is none, or more than one; or llama.cpp has no such dtype.
        """
        import llama_cpp

        if dtype not in _GGML_TYPES:
            raise TimingError(f"llama.cpp has no cache in {dtype}", expected=f"--dtype {', '.join(_GGML_TYPES)}")
        found = sorted(directory.glob("*.gguf"))
        if len(found) != 1:
            raise TimingError(
                f"There are {len(found)} GGUF files in {directory}",
                expected="one, which llama.cpp reads",
                remedy=f"Make it with llama.cpp's convert_hf_to_gguf.py {directory} --outfile {directory}/model.gguf",
            )
        self.llama: Any = llama_cpp.Llama(
            str(found[0]),
            n_ctx=length,
            n_threads=torch.get_num_threads(),
            type_k=_GGML_TYPES[dtype],
            type_v=_GGML_TYPES[dtype],
            seed=seed,
            verbose=False,
        )
        self._vocabulary = vocabulary
        self._random = random.Random(seed)  # noqa: S311 - prompts, not secrets

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds from a prompt to its first new token."""
        ids = self._ids(tokens)
        self.llama.reset()
        started = time.perf_counter()
        self.llama.eval(ids)
        self.llama.sample(temp=0.0)
        return time.perf_counter() - started

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "LlamaCppSequence":
        """Return a sequence of which as many tokens have been read."""
        self.llama.reset()
        self.llama.eval(self._ids(filled.own))
        return LlamaCppSequence(self.llama)

    def _ids(self, tokens: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(tokens)]


class LlamaCppSequence:
    """A sequence that llama.cpp has in its cache."""

    cache_bytes: int | None = None

    def __init__(self, llama: Any) -> None:
        self._llama = llama

    def turn(self, tokens: int) -> list[float]:
        """Decode `tokens` tokens, and return the seconds of each."""
        times = []
        for _ in range(tokens):
            started = time.perf_counter()
            self._llama.eval([self._llama.sample(temp=0.0)])
            times.append(time.perf_counter() - started)
        return times
