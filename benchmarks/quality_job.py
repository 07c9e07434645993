"""One conversion of `quality.py` and its measurement, in a process of its own.

    run      starts the process
    measure  what it does: convert (`ways.py`), evaluate the files that were written

The evaluated model is loaded strictly, by transformers' own class.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ways import Request, convert


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
    directory = find_source(job.model).directory
    if not job.way:
        return _evaluate(directory, job)
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            model=job.model, groups=job.groups, seed=job.seed, calibration=job.calibration, tokens=job.settings.tokens,
            context=job.settings.context, steps=job.settings.steps, device="cpu",
        )  # fmt: skip
        costs = convert(job.way, request, Path(folder) / "converted")
        return _evaluate(Path(folder) / "converted", job) | costs


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


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
