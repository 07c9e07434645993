"""The ways to convert that `quality.py` and `real.py` measure, baselines of others among them.

    WAYS     name -> what is asked of `convert`
    convert  converts in one of them, and tells the seconds, the peak of memory and the cache

Seconds are those of the conversion alone, libraries being there; peak memory is that of the process, libraries included
(Linux: read from /proc).
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mha2gqa.families.cache import cache_bytes
from mha2gqa.methods import METHODS, Method
from mha2gqa.model.architecture import Architecture

_TURNED = "The heads of each group were turned towards one another and averaged"
BASELINES = {
    "mean-norm": Method("baselines:mean_norm", "The heads of each group were averaged, rescaled", streams=False),
    "procrustes": Method("baselines:procrustes", _TURNED, streams=False, reads_text=True),
    "procrustes-norm": Method("baselines:procrustes_norm", f"{_TURNED}, rescaled", streams=False, reads_text=True),
}
"""Methods that the package does not have."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to convert."""

    label: str
    """What tables and plots call it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `ConvertOptions`, but for what makes the cache smaller."""
    by: Literal["groups", "latent_like_groups", "window", "rank"] = "groups"
    """What makes the cache that of so many KV heads: at the end of a block, for a window; of keys and of values as
    mixtures of so few numbers each, for a rank, which `convert` does not have."""
    text: bool = False
    """Whether it reads text: that for calibration, unless `options` say another."""
    draws: bool = False
    """Whether it draws numbers, other than by training."""


def _aligned(label: str, **options: Any) -> Way:
    return Way(
        label=f"aligned, {label}", options={"method": "aligned"} | options, text=options.get("data") != ("none",)
    )


def _latent(label: str = "", **options: Any) -> Way:
    return Way(label=f"latent, with data{label}", options=options, by="latent_like_groups", text=True)


WAYS = {
    "mean": Way(label="mean", options={"method": "mean"}),
    "first": Way(label="first", options={"method": "first"}),
    "random": Way(label="random", options={"method": "random"}, draws=True),
    "mean-norm": Way(label="mean, norms restored", options={"method": "mean-norm"}),
    "procrustes": Way(label="Procrustes, then mean", options={"method": "procrustes"}, text=True),
    "procrustes-norm": Way(
        label="Procrustes, then mean, norms restored", options={"method": "procrustes-norm"}, text=True
    ),
    "svd": Way(label="whitened SVD of keys and values", by="rank", text=True),
    "window": Way(label="window", by="window"),
    "aligned": _aligned("no data", data=("none",)),
    "random-text": _aligned("4,096 random tokens", data=("random",), tokens=4096),
    "self": _aligned("text that it wrote itself", data=("self",)),
    "data": _aligned("with data"),
    "similar": _aligned("with data, similar heads", grouping="similar"),
    "refit": _aligned("with data, refit", refine="refit"),
    "distil": _aligned("with data, distil", refine="distil"),
    "joint": _aligned("with data, joint", refine="joint"),
    "latent": _latent(),
    "latent-refit": _latent(", refit", refine="refit"),
    "latent-distil": _latent(", distil", refine="distil"),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is converted, and by what text; every way has a cache of the same bytes."""

    model: str | None
    groups: int
    """KV heads whose cache the result has."""
    seed: int
    calibration: str
    """File of text."""
    tokens: int
    """Of that text, at most."""
    context: int | None
    steps: int
    device: str | None = None


def convert(name: str, request: Request, output: Path) -> dict[str, Any]:
    """Convert in the way of a name.

    Returns:
        `seconds`; `peak` bytes; `cache` and `cache_before`, bytes a token, for a window of a block at its end.
    """
    import datasets  # noqa: F401 (what a conversion imports late is imported before the clock starts)
    from transformers import AutoModelForCausalLM  # noqa: F401

    way = WAYS[name]
    METHODS.update(BASELINES)
    try:
        started = time.perf_counter()
        cache, before = _low_rank(request, output) if way.by == "rank" else _converted(way, request, output)
        seconds = time.perf_counter() - started
    finally:
        for one in BASELINES:
            del METHODS[one]
    return {"seconds": seconds, "peak": peak_memory(), "cache": cache, "cache_before": before}


def _converted(way: Way, request: Request, output: Path) -> tuple[int, int]:
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert as run

    size, context = request.groups, 1
    if way.by == "window":
        model, context = _model_and_context(request)
        size = context * request.groups // model.kv_heads
    asked: dict[str, Any] = {way.by: size, "seed": request.seed, "steps": request.steps, "device": request.device}
    if way.text:
        asked |= {"data": (request.calibration,), "tokens": request.tokens, "context": request.context}
    report = run(ConvertOptions(model=request.model, output=output, **asked | way.options))
    kept = size if way.by == "window" else context
    return report.cache_after * kept // context, report.cache_before


def _low_rank(request: Request, output: Path) -> tuple[int, int]:
    from latent_baselines import low_rank

    from mha2gqa.files.dtypes import DTYPES
    from mha2gqa.files.source import find_source
    from mha2gqa.model.load import load_model, load_tokenizer
    from mha2gqa.model.original import Original
    from mha2gqa.refine.statistics import gather_statistics
    from mha2gqa.texts.blocks import pack
    from mha2gqa.texts.documents import read_documents
    from mha2gqa.verbs.convert.layerwise import batches

    known, context = _model_and_context(request)
    directory = find_source(request.model).directory
    dtype = DTYPES[str(Original.at(directory).dtype)]
    model, tokenizer = load_model(directory, device=request.device), load_tokenizer(directory)
    layers = list(known.attention_layers([(count, request.groups) for count in known.counts]))
    blocks_NT = pack(read_documents([request.calibration]), tokenizer, context=context, tokens=request.tokens)
    statistics = gather_statistics(model, layers, batches(blocks_NT), lambda *_: None)
    # A KV head has as many numbers of keys as of values, and so have these.
    rank = request.groups * known.cached[0].width // 2
    found: Any = low_rank(model, layers, statistics, rank)
    found.to(dtype).save_pretrained(output)
    tokenizer.save_pretrained(output)
    after, before = (cache_bytes(known.cached, dtype.itemsize, groups=groups) for groups in (request.groups, None))
    return after, before


def _model_and_context(request: Request) -> tuple[Architecture, int]:
    """Return what is known of the source, and the tokens of a block."""
    from mha2gqa.files.source import find_source
    from mha2gqa.model.load import context_length
    from mha2gqa.model.original import Original

    model = Original.at(find_source(request.model).directory).architecture
    return model, context_length(model.config, request.context)


def peak_memory() -> int:
    """Return the largest resident size so far in bytes; unlike getrusage's it does not begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
