"""Which engine runs the models: refused before anything is loaded, or opened with both.

    transformers    in this process, each cache and attention implementation by name (`transformers_engine.py`)
    vllm            its Python API, without its prefix cache; the cache and the attention are its own
    llama.cpp       llama-cpp-python, on the one GGUF file beside the weights of each checkpoint; batch 1

The last two need checkpoints, and packages that are not ours to install. Both decode greedily. vLLM has no call for a
single step, so the time of one is what more tokens take beyond the first, through their number. It was not run where
this was written: it needs an accelerator, and there was none. llama.cpp's own `convert_hf_to_gguf.py` makes its file,
whose dtype the weights have; the cache has the one that is asked for.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from mha2gqa.errors import TimingError
from mha2gqa.verbs.bench.attention import use_attention
from mha2gqa.verbs.bench.grid import Grid
from mha2gqa.verbs.bench.limits import Filled
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.subjects import Subjects
from mha2gqa.verbs.bench.transformers_engine import EncoderDecoderEngine, TransformersEngine

OWN = "own"
"""The kind of cache of an engine that has but one."""
_MODULES = {"vllm": "vllm", "llama.cpp": "llama_cpp"}
_PACKAGES = {"vllm": "vllm", "llama.cpp": "llama-cpp-python"}
GRAPHS = ("cuda", "xpu")
"""Devices on which `generate` compiles the decode step of a static cache."""
_SHARE = 0.45
"""Of the device's memory, for each of two models."""
_GGML_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}
"""Dtype -> number in `ggml_type`."""


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


def check_engine(options: BenchOptions) -> tuple[str, ...]:
    """Return the kinds of cache that the engine has.

    Raises:
        TimingError: The engine is not installed, or cannot do what the options ask.
    """
    if options.engine == "transformers":
        return options.cache or ("dynamic", "static")
    if find_spec(_MODULES[options.engine]) is None:
        raise TimingError(
            f"--engine {options.engine} needs the package {_PACKAGES[options.engine]}, which is not installed",
            remedy=f"Install it (pip install {_PACKAGES[options.engine]}), or leave --engine out",
        )
    given = {"--cache": options.cache, "--attention": options.attention, "--shape": options.shape}
    if named := [name for name, value in given.items() if value]:
        raise TimingError(
            f"--engine {options.engine} makes no use of {', '.join(named)}",
            expected="two checkpoints; the cache and the attention are the engine's own",
        )
    if options.engine == "llama.cpp" and set(options.batch) != {1}:
        raise TimingError("--engine llama.cpp decodes one sequence at a time here", expected="--batch 1")
    return (OWN,)


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
        TimingError: The attention implementation is not for this class, or a GGUF file is missing.
        Mha2GqaError: A checkpoint does not load.
    """
    if options.engine == "transformers":
        models = subjects.load(options.seed)
        first, second = (use_attention(model, options.attention) for model in models)
        on_graphs = subjects.device.startswith(GRAPHS)
        kind = EncoderDecoderEngine if subjects.has_encoder else TransformersEngine
        engines = (kind(models[0], options.seed), kind(models[1], options.seed))
        return Running(engines, first if first == second else f"{first}, {second}", on_graphs)
    directories = [Path(str(one.directory)) for one in subjects.both]
    length = grid.longest
    size = min(one.model.vocabulary for one in subjects.both)
    dtype = str(subjects.dtype).removeprefix("torch.")
    is_vllm = options.engine == "vllm"
    opened: Any = VllmEngine if is_vllm else LlamaCppEngine
    first_engine, second_engine = (opened(one, dtype, length, size, options.seed) for one in directories)
    return Running((first_engine, second_engine), OWN, compiled=is_vllm, packages=(_PACKAGES[options.engine],))


def _random_prompts(vocabulary: int, seed: int) -> Callable[[int], list[int]]:
    """Return what writes a prompt of as many tokens as it is told, all of them below `vocabulary`."""
    generator = random.Random(seed)  # noqa: S311 - prompts, not secrets
    return lambda tokens: [generator.randrange(vocabulary) for _ in range(tokens)]


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
        self._prompt = _random_prompts(vocabulary, seed)

    def prefill(self, batch: int, tokens: int, chunk: int | None = None) -> float:
        """Return the seconds from a batch of prompts to the first new token of each; vLLM cuts them as it likes."""
        return self.seconds(batch, tokens, 1)

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        """Return None: vLLM fills memory with cache before it reads anything."""
        return None

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "VllmBatch":
        """Return a batch of prompts of as many tokens; vLLM keeps their caches itself."""
        return VllmBatch(self, batch, filled.own)

    def seconds(self, batch: int, tokens: int, new: int) -> float:
        """Return how long `new` tokens of each of `batch` prompts take."""
        prompts = [{"prompt_token_ids": self._prompt(tokens)} for _ in range(batch)]
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
        self._prompt = _random_prompts(vocabulary, seed)

    def peak(self, batch: int, tokens: int, chunk: int | None = None) -> int | None:
        """Return None: llama.cpp makes the whole cache before it reads anything."""
        return None

    def prefill(self, batch: int, tokens: int, chunk: int | None = None) -> float:
        """Return the seconds from a prompt to its first new token."""
        ids = self._prompt(tokens)
        self.llama.reset()
        started = time.perf_counter()
        self.llama.eval(ids)
        self.llama.sample(temp=0.0)
        return time.perf_counter() - started

    def start(self, batch: int, filled: Filled, kind: str, room: int) -> "LlamaCppSequence":
        """Return a sequence of which as many tokens have been read."""
        self.llama.reset()
        self.llama.eval(self._prompt(filled.own))
        return LlamaCppSequence(self.llama)


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
