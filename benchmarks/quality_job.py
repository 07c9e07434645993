"""One conversion of `quality.py` and its measurement, in a process of its own.

    WAYS     the ways to convert, baselines of others among them
    run      starts the process
    measure  what it does: convert, note seconds and memory, evaluate the files that were written

The evaluated model is loaded strictly, by transformers' own class. Peak memory is that of the process, libraries
included (Linux: read from /proc); seconds are those of the conversion alone, libraries being there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mha2gqa.methods import METHODS, Method

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

    options: dict[str, Any]
    """Of `ConvertOptions`."""
    text: bool = False
    """Whether it reads calibration text."""
    draws: bool = False
    """Whether it draws numbers."""


ALIGNED: dict[str, Any] = {"method": "aligned"}
WAYS = {
    "mean": Way(options={"method": "mean"}),
    "first": Way(options={"method": "first"}),
    "random": Way(options={"method": "random"}, draws=True),
    "mean-norm": Way(options={"method": "mean-norm"}),
    "procrustes": Way(options={"method": "procrustes"}, text=True),
    "procrustes-norm": Way(options={"method": "procrustes-norm"}, text=True),
    "aligned": Way(options=ALIGNED | {"data": ("none",)}),
    "data": Way(options=ALIGNED, text=True),
    "similar": Way(options=ALIGNED | {"grouping": "similar"}, text=True),
    "refit": Way(options=ALIGNED | {"refine": "refit"}, text=True),
    "distil": Way(options=ALIGNED | {"refine": "distil"}, text=True, draws=True),
    "joint": Way(options=ALIGNED | {"refine": "joint"}, text=True, draws=True),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all conversions of one call have in common."""

    tokens: int
    """Of calibration text, at most."""
    eval_tokens: int
    context: int | None
    steps: int
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One conversion and its evaluation; no way is the original's."""

    model: str | None
    groups: int = 0
    way: str = ""
    seed: int = 0
    calibration: str = ""
    evaluation: str
    settings: Settings


def run(job: Job) -> dict[str, Any]:
    """Convert and evaluate in a process of its own, and return what `measure` does."""
    command = [sys.executable, str(Path(__file__)), json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"error: {job.way} to {job.groups} KV heads: {(done.stderr or done.stdout).strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(arguments: str) -> dict[str, Any]:
    """Convert, and measure the result."""
    content = json.loads(arguments)
    job = Job(**content | {"settings": Settings(**content["settings"])})

    import torch

    from mha2gqa.files.source import find_source

    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    METHODS.update(BASELINES)
    directory = find_source(job.model).directory
    if not job.way:
        return _evaluate(directory, job)
    with tempfile.TemporaryDirectory() as folder:
        seconds, cache, before = _convert(job, Path(folder) / "converted")
        peak = peak_memory()
        return _evaluate(Path(folder) / "converted", job) | {
            "seconds": seconds,
            "peak": peak,
            "cache": cache,
            "cache_before": before,
        }


def _convert(job: Job, output: Path) -> tuple[float, int, int]:
    """Return the seconds, and the bytes of KV cache a token after and before."""
    import datasets  # noqa: F401 (what a conversion imports late is imported before the clock starts)
    from transformers import AutoModelForCausalLM  # noqa: F401

    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert

    way, settings = WAYS[job.way], job.settings
    options: dict[str, Any] = way.options | {"groups": job.groups, "seed": job.seed, "steps": settings.steps}
    if way.text:
        options |= {"data": (job.calibration,), "tokens": settings.tokens, "context": settings.context}
    started = time.perf_counter()
    report = convert(ConvertOptions(model=job.model, output=output, device="cpu", **options))
    return time.perf_counter() - started, report.cache_after, report.cache_before


def _evaluate(directory: Path, job: Job) -> dict[str, Any]:
    """Return the loss in nats a token, and of how many tokens it is the mean."""
    from mha2gqa.model.load import context_length, load_model, load_tokenizer
    from mha2gqa.texts.blocks import mean_loss, pack
    from mha2gqa.texts.documents import read_documents

    model = load_model(directory, dtype="float32", device="cpu")
    context = context_length(model.config, job.settings.context)
    documents = read_documents([job.evaluation])
    blocks_NT = pack(documents, load_tokenizer(directory), context=context, tokens=job.settings.eval_tokens)
    return {"loss": mean_loss(model, blocks_NT.split(8)), "evaluated": len(blocks_NT) * (context - 1)}


def peak_memory() -> int:
    """Return the largest resident size so far in bytes; unlike getrusage's it does not begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
