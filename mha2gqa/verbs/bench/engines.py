"""Which engine runs the models: refused before anything is loaded, or opened with both.

    transformers    in this process, each cache and attention implementation by name
    vllm            its Python API; the cache and the attention are its own
    llama.cpp       llama-cpp-python, on the one GGUF file beside the weights of each checkpoint; batch 1

The last two need checkpoints, and packages that are not ours to install.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mha2gqa.errors import TimingError
from mha2gqa.verbs.bench.attention import use_attention
from mha2gqa.verbs.bench.encoder_decoder_engine import EncoderDecoderEngine
from mha2gqa.verbs.bench.engine import Engine
from mha2gqa.verbs.bench.grid import Grid
from mha2gqa.verbs.bench.options import BenchOptions
from mha2gqa.verbs.bench.subjects import Subjects
from mha2gqa.verbs.bench.transformers_engine import TransformersEngine

OWN = "own"
"""The kind of cache of an engine that has but one."""
_MODULES = {"vllm": "vllm", "llama.cpp": "llama_cpp"}
_PACKAGES = {"vllm": "vllm", "llama.cpp": "llama-cpp-python"}
GRAPHS = ("cuda", "xpu")
"""Devices on which `generate` compiles the decode step of a static cache."""


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
    package = (_PACKAGES[options.engine],)
    if options.engine == "vllm":
        from mha2gqa.verbs.bench.vllm_engine import VllmEngine

        served = [VllmEngine(one, dtype, length, size, options.seed) for one in directories]
        return Running((served[0], served[1]), OWN, True, package)
    from mha2gqa.verbs.bench.llama_cpp_engine import LlamaCppEngine

    read = [LlamaCppEngine(one, dtype, length, size, options.seed) for one in directories]
    return Running((read[0], read[1]), OWN, False, package)
