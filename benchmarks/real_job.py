"""One conversion of `real.py` and its measurement, in a process of its own.

The original's log-probabilities on the evaluation text are kept beside the text, so that it is run once for all ways.

Legend: T tokens of a block, V vocabulary.
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

import torch
from quality_job import peak_memory
from quantised_cache import QuantisedCache


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to convert."""

    label: str
    options: dict[str, Any]
    """Of `ConvertOptions`."""
    text: bool = False
    """Whether it reads calibration text."""


_ALIGNED: dict[str, Any] = {"method": "aligned"}
_RANDOM: dict[str, Any] = {"data": ("random",), "tokens": 4096, "context": 512}
WAYS = {
    "mean": Way(label="mean", options={"method": "mean"}),
    "first": Way(label="first", options={"method": "first"}),
    "guess": Way(label="aligned, from the weights alone", options=_ALIGNED | {"data": ("none",)}),
    "random": Way(label="aligned, 4,096 random tokens", options=_ALIGNED | _RANDOM),
    "self": Way(label="aligned, text that it wrote itself", options=_ALIGNED),
    "data": Way(label="aligned, with data", options=_ALIGNED, text=True),
    "latent": Way(label="latent of the same bytes, with data", options={}, text=True),
    "latent-distil": Way(label="latent of the same bytes, with data, distil", options={"refine": "distil"}, text=True),
    "refit": Way(label="aligned, with data, refit", options=_ALIGNED | {"refine": "refit"}, text=True),
    "distil": Way(label="aligned, with data, distil", options=_ALIGNED | {"refine": "distil"}, text=True),
    "joint": Way(label="aligned, with data, joint", options=_ALIGNED | {"refine": "joint"}, text=True),
}
_QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
)
_BEGINNING = 32
"""Tokens of text in the place of a question, where a model does not chat."""
_ANSWER = 64
"""Tokens of an answer."""
BITS = (8, 4)
"""Of a quantised cache."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One conversion and its evaluation."""

    model: str
    groups: int
    way: str
    seed: int
    calibration: str
    evaluation: str
    work: str
    """Where what is known of the original is kept."""
    tokens: int
    eval_tokens: int
    context: int
    steps: int
    threads: int | None


def run(job: Job) -> dict[str, Any]:
    """Convert and evaluate in a process of its own, and return what `measure` does."""
    command = [sys.executable, str(Path(__file__)), json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"error: {job.model}, {job.way}: {(done.stderr or done.stdout).strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(job: Job) -> dict[str, Any]:
    """Convert, and compare the result with the original."""
    from mha2gqa.files.source import find_source

    if job.threads:
        torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "converted"
        seconds, outcome = _convert(job, output)
        peak = peak_memory()
        known = _of_original(job, find_source(job.model).directory)
        return _compare(output, known) | {
            "seconds": seconds,
            "peak": peak,
            "cache": outcome.cache_after,
            "cache_before": outcome.cache_before,
        }


def _convert(job: Job, output: Path) -> tuple[float, Any]:
    from transformers import AutoModelForCausalLM  # noqa: F401 (imported before the clock starts)

    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert

    way = WAYS[job.way]
    options = way.options | {"seed": job.seed, "steps": job.steps}
    options |= {"latent_like_groups": job.groups} if job.way.startswith("latent") else {"groups": job.groups}
    if way.text:
        options |= {"data": (job.calibration,), "tokens": job.tokens, "context": job.context}
    started = time.perf_counter()
    outcome = convert(ConvertOptions(model=job.model, output=output, **options))
    return time.perf_counter() - started, outcome


@dataclass(frozen=True)
class Known:
    """What is known of the original."""

    blocks: torch.Tensor
    """Evaluation text, int64 `[N, T]`."""
    logprobs: Path
    """Directory with the log-probabilities of each block, fp16 `[T, V]`: precise to 0.01 where they matter least."""
    loss: float
    quantised: dict[str, float]
    """Its loss with a cache of so many bits."""
    answers: list[tuple[int, list[int]]]
    """Length of each question in tokens, and the tokens of question and answer."""


@torch.inference_mode()
def _of_original(job: Job, directory: Path) -> Known:
    from mha2gqa.model.load import load_model, load_tokenizer
    from mha2gqa.texts.blocks import pack

    folder = Path(job.work) / directory.name
    if (folder / "known.json").exists():
        content = json.loads((folder / "known.json").read_text())
        return Known(torch.load(folder / "blocks.pt"), folder, **content)
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    text = Path(job.evaluation).read_text(encoding="utf-8")
    blocks_NT = pack([text], tokenizer, context=job.context, tokens=job.eval_tokens)
    losses = []
    for number, ids_T in enumerate(blocks_NT):
        logprobs_TV = _logprobs(model, ids_T)
        losses.append(_loss(logprobs_TV, ids_T))
        torch.save(logprobs_TV.half(), folder / f"{number}.pt")
    content = {
        "loss": sum(losses) / len(losses),
        "quantised": _quantised_losses(model, blocks_NT),
        "answers": [(len(ids), _answer(model, ids)) for ids in _questions(tokenizer, blocks_NT)],
    }
    torch.save(blocks_NT, folder / "blocks.pt")
    (folder / "known.json").write_text(json.dumps(content))
    return Known(blocks_NT, folder, **content)


def _questions(tokenizer: Any, blocks_NT: torch.Tensor) -> list[list[int]]:
    if not tokenizer.chat_template:
        return [ids[:_BEGINNING] for ids in blocks_NT[: len(_QUESTIONS)].tolist()]
    turns = [[{"role": "user", "content": question}] for question in _QUESTIONS]
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _answer(model: Any, ids: list[int]) -> list[int]:
    given = torch.tensor([ids], device=model.device)
    found: list[int] = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=_ANSWER)[0].tolist()
    return found


@torch.inference_mode()
def _compare(directory: Path, known: Known) -> dict[str, Any]:
    from mha2gqa.model.load import load_model

    model = load_model(directory)
    sums = torch.zeros(3, dtype=torch.float64)
    for number, ids_T in enumerate(known.blocks):
        found_TV = _logprobs(model, ids_T)
        wanted_TV = torch.load(known.logprobs / f"{number}.pt").float()
        divergence = (wanted_TV.exp() * (wanted_TV - found_TV)).sum(dim=-1).mean()
        same = (wanted_TV.argmax(dim=-1) == found_TV.argmax(dim=-1)).float().mean()
        sums += torch.tensor([_loss(found_TV, ids_T), float(divergence), float(same)], dtype=torch.float64)
    loss, divergence, same = (sums / len(known.blocks)).tolist()
    tokens = [_same_tokens(model, length, ids) for length, ids in known.answers]
    return {
        "loss": loss,
        "original": known.loss,
        "quantised": _quantised_losses(model, known.blocks),
        "original_quantised": known.quantised,
        "kl": divergence,
        "top1": same,
        "same_tokens": sum(tokens) / len(tokens),
        "evaluated": known.blocks[:, 1:].numel(),
    }


def _quantised_losses(model: Any, blocks_NT: torch.Tensor) -> dict[str, float]:
    found = {}
    for bits in BITS:
        losses = [_loss(_logprobs(model, ids_T, QuantisedCache(bits)), ids_T) for ids_T in blocks_NT]
        found[str(bits)] = sum(losses) / len(losses)
    return found


def _logprobs(model: Any, ids_T: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """Return log-probabilities, fp32 `[T - 1, V]`, on the CPU; keys and values are read from the cache, if any."""
    read = model(input_ids=ids_T[None].to(model.device), past_key_values=cache, use_cache=cache is not None)
    logits: torch.Tensor = read.logits[0, :-1]
    return logits.float().log_softmax(dim=-1).cpu()


def _loss(logprobs_TV: torch.Tensor, ids_T: torch.Tensor) -> float:
    return -float(logprobs_TV.gather(1, ids_T[1:, None]).mean())


def _same_tokens(model: Any, length: int, ids: list[int]) -> int:
    """Return how many tokens of a greedy answer are the original's, up to the first that differs."""
    # Up to there the converted model reads what the original wrote: one pass over that answer tells.
    told = _logprobs(model, torch.tensor(ids)).argmax(dim=-1)[length - 1 :].tolist()
    return next(
        (place for place, (one, other) in enumerate(zip(told, ids[length:], strict=True)) if one != other), len(told)
    )


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
