"""One conversion of `real.py` and its measurement, in a process of its own.

The original's log-probabilities on the evaluation text are kept beside the text, so that it is run once for all ways.

Legend: T tokens of a block, V vocabulary.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from quantised_cache import QuantisedCache
from ways import Request, convert

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
    tasks: tuple[str, ...] = ()
    """Of lm-evaluation-harness."""
    task_path: str | None = None


def run(job: Job) -> dict[str, Any]:
    """Convert and evaluate in a process of its own, and return what `measure` does."""
    command = [sys.executable, str(Path(__file__)), json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"error: {job.model}, {job.way}: {(done.stderr or done.stdout).strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(job: Job) -> dict[str, Any]:
    """Convert, and compare the result with the original; `refused` says why such a model is not converted that way."""
    from mha2gqa.errors import FamilyError, GroupsError
    from mha2gqa.files.source import find_source

    if job.threads:
        torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "converted"
        request = Request(**{one.name: getattr(job, one.name) for one in fields(Request) if hasattr(job, one.name)})
        try:
            costs = convert(job.way, request, output)
        except (FamilyError, GroupsError) as error:  # what is wrong with the text or the disk may be mended
            return {"refused": str(error)}
        source = find_source(job.model).directory
        return _compare(output, source, _of_original(job, source), job) | costs


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
    tasks: dict[str, float] = field(default_factory=dict)
    """Its scores in the harness's tasks."""


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
        "tasks": _scores(model, directory, job),
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
def _compare(directory: Path, source: Path, known: Known, job: Job) -> dict[str, Any]:
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
        "tasks": _scores(model, source, job),
        "original_tasks": known.tasks,
    }


def _scores(model: Any, source: Path, job: Job) -> dict[str, float]:
    """Return what a model scores in each task, by the original's tokenizer."""
    if not job.tasks:
        return {}
    from mha2gqa.model.load import load_tokenizer
    from mha2gqa.verbs.verify.benchmarks import find_tasks, score, side_by_side

    suite = find_tasks(job.tasks, Path(job.task_path) if job.task_path else None, model)
    found: Mapping[str, Any] = score(suite, model, load_tokenizer(source))
    return {f"{one.task}, {one.metric}": one.converted for one in side_by_side(found, found)}


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
