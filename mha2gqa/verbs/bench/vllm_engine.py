"""Runs a checkpoint by vLLM's Python API, greedy, without its prefix cache.

vLLM has no call for a single step, so the time of one is what more tokens take beyond the first, through their
number. Each of the two models gets a little under half of the device. Not run where this was written: vLLM needs an
accelerator, and there was none.
"""

import random
import time
from pathlib import Path
from typing import Any

from mha2gqa.verbs.bench.engine import Filled

_SHARE = 0.45
"""Of the device's memory, for each of two models."""


class VllmEngine:
    """A model that vLLM runs."""

    def __init__(self, directory: Path, dtype: str, length: int, vocabulary: int, seed: int) -> None:
        import vllm

        self._sampling: Any = vllm.SamplingParams
        self._llm: Any = vllm.LLM(
            model=str(directory),
            dtype=dtype,
            max_model_len=length,
            gpu_memory_utilization=_SHARE,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            seed=seed,
        )
        self._vocabulary = vocabulary
        self._random = random.Random(seed)  # noqa: S311 - prompts, not secrets

    def prefill(self, batch: int, tokens: int) -> float:
        """Return the seconds from a batch of prompts to the first new token of each."""
        return self.seconds(batch, tokens, 1)

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "VllmBatch":
        """Return a batch of prompts of as many tokens; vLLM keeps their caches itself."""
        return VllmBatch(self, batch, filled.own)

    def seconds(self, batch: int, tokens: int, new: int) -> float:
        """Return how long `new` tokens of each of `batch` prompts take."""
        prompts = [
            {"prompt_token_ids": [self._random.randrange(self._vocabulary) for _ in range(tokens)]}
            for _ in range(batch)
        ]
        asked = self._sampling(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        self._llm.generate(prompts, asked, use_tqdm=False)
        return time.perf_counter() - started


class VllmBatch:
    """Prompts that are read again in every turn."""

    cache_bytes: int | None = None

    def __init__(self, engine: VllmEngine, batch: int, context: int) -> None:
        self._engine, self._batch, self._context = engine, batch, context

    def turn(self, tokens: int) -> list[float]:
        """Return the mean seconds of `tokens` steps beyond the first token."""
        first = self._engine.seconds(self._batch, self._context, 1)
        all_of_them = self._engine.seconds(self._batch, self._context, tokens + 1)
        return [(all_of_them - first) / tokens]
