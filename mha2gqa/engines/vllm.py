"""vLLM, by its Python API, without its prefix cache; its cache and its attention are its own."""

import re
import time
from collections.abc import Sequence
from typing import Any

import torch

from mha2gqa.engines import Cache, Setup
from mha2gqa.errors import EngineError

_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
_MEMORY = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_LIKELY = 64
"""Tokens whose probabilities it may be asked for."""


class Vllm:
    """A model that vLLM runs."""

    def __init__(self, setup: Setup) -> None:
        """Load a checkpoint.

        Raises:
            EngineError: It has no class for it, or the class fails.
        """
        import vllm

        self._sampling: Any = vllm.SamplingParams
        try:
            self._llm: Any = vllm.LLM(
                model=str(setup.directory),
                dtype=setup.dtype,
                max_model_len=setup.length,
                gpu_memory_utilization=setup.share,
                enable_prefix_caching=False,
                skip_tokenizer_init=True,
                max_logprobs=_LIKELY,
                enforce_eager=not torch.cuda.is_available(),  # a CPU compiles for minutes
                seed=setup.seed,
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineError(f"vLLM does not load {setup.directory} ({type(error).__name__}: {reason})") from error

    def _generate(self, prompts: Sequence[Sequence[int]], tokens: int, **more: Any) -> list[Any]:
        asked = self._sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False, **more)
        given = [{"prompt_token_ids": list(ids)} for ids in prompts]
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            answers: list[Any] = self._llm.generate(given, asked, use_tqdm=False)
        except EngineDeadError as error:
            raise EngineError("vLLM loads the checkpoint, and fails when it runs it") from error
        return answers

    def follow(self, ids: Sequence[int], top: int) -> list[dict[int, float]]:
        """Return the logarithms of the probabilities of the `top` likeliest tokens after each of `ids`."""
        (answer,) = self._generate([ids], 1, prompt_logprobs=top, logprobs=top)
        found = [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]
        return [{token: likely.logprob for token, likely in one.items()} for one in found]

    def write(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Return the tokens that follow greedily, whatever ends a text."""
        (answer,) = self._generate([ids], tokens)
        return list(answer.outputs[0].token_ids)

    def cache(self, printed: str) -> Cache:
        """Return what it prints of its cache: tokens, and on an accelerator memory, in hundredths of a gibibyte."""
        tokens, memory = _CACHE.search(printed), _MEMORY.search(printed)
        told = "; ".join(found[0] for found in (memory, tokens) if found)
        if tokens is None or memory is None:
            return Cache(told, None)
        return Cache(told, float(memory[1]) * (1 << 30) / int(tokens[1].replace(",", "")))

    def seconds(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Return how long `new` tokens of each of the prompts take."""
        started = time.perf_counter()
        self._generate(prompts, new)
        return time.perf_counter() - started

    def close(self) -> None:
        """Let go of the model."""
        del self._llm
