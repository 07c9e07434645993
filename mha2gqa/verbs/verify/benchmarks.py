"""Standard benchmarks on both models, by lm-evaluation-harness's own Python API.

`find_tasks` finds and loads what was asked for, so that every refusal comes before a model is loaded;
`run_tasks` scores both models and puts their numbers beside one another. Few-shot examples, prompts and metrics
are the tasks' own. Nothing here knows what a task asks.

The harness is the optional extra `eval`; it is imported inside the functions.
"""

import contextlib
import difflib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import BenchmarkError
from mha2gqa.model.kind import kind_of
from mha2gqa.progress import Advance
from mha2gqa.verbs.verify.early import check_task_path
from mha2gqa.verbs.verify.outcome import Benchmark

_BATCH = 8
"""Documents a batch on a CPU; on an accelerator the harness finds what fits."""
_BOOTSTRAP = 1000
"""Samples for the standard error of the metrics that have no formula for it."""


@dataclass(frozen=True)
class Suite:
    """Tasks that were found and whose data is there."""

    names: tuple[str, ...]
    """Of tasks, groups and tags, as the harness spells them."""
    manager: Any = field(repr=False)
    """The harness's `TaskManager`, which knows them."""


def find_tasks(names: Sequence[str], path: Path | None, model: PreTrainedModel) -> Suite:
    """Find tasks by their names, and load their data.

    Args:
        names: Tasks, groups or tags of lm-evaluation-harness; `*` stands for anything.
        path: A directory of further task definitions (YAML); they win over the harness's own.
        model: The original, without weights.

    Raises:
        BenchmarkError: The harness is not installed or does not run such models, a task is unknown, its data cannot be
            had, or it would run code.
    """
    kind = kind_of(model)
    if not kind.predicts_next_token:
        raise BenchmarkError(
            f"lm-evaluation-harness does not run {kind.name}: it predicts no next token", remedy="Leave out --tasks"
        )
    check_task_path(path)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise BenchmarkError(
            f"--tasks needs lm-evaluation-harness, which cannot be imported ({error})",
            remedy="Install it with `pip install 'mha2gqa[eval]'`",
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(path) if path else None)
    found = tuple(dict.fromkeys(match for name in names for match in _matches(name, manager)))
    _load(found, manager)
    return Suite(found, manager)


def run_tasks(
    suite: Suite,
    original: PreTrainedModel,
    converted: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    advance: Advance,
) -> tuple[Benchmark, ...]:
    """Score both models on all tasks of `suite`.

    Args:
        suite: As `find_tasks` returned it.
        original: The original.
        converted: The converted checkpoint.
        tokenizer: The original's, for both.
        advance: Told of each model that is done.
    """
    results = []
    for model in (original, converted):
        results.append(score(suite, model, tokenizer))
        advance(1, 2)
    return tuple(side_by_side(*results))


def _matches(name: str, manager: Any) -> list[str]:
    found: list[str] = manager.match_tasks([name])
    if not found:
        close = difflib.get_close_matches(name, manager.all_tasks, n=3)
        raise BenchmarkError(
            f"lm-evaluation-harness has no task {name!r}",
            expected=f"a name such as {', '.join(close)}" if close else "a name that `lm-eval ls tasks` lists",
            remedy="Name a directory with your own tasks by --task-path" if not close else "",
        )
    return sorted(found)


def _load(names: Sequence[str], manager: Any) -> None:
    """Load the tasks once: whatever they download is there afterwards."""
    for name in names:
        try:
            tasks = manager.load([name])["tasks"]
        except (OSError, ValueError, RuntimeError, ImportError) as error:  # what the reading of data raises
            reason = " ".join(str(error).split())[:200]
            raise BenchmarkError(
                f"The task {name!r} cannot be loaded: {type(error).__name__}: {reason}",
                remedy="Check that its data can be reached, or name other tasks",
            ) from error
        for task in tasks.values():
            if task.get_config("unsafe_code"):
                raise BenchmarkError(
                    f"The task {name!r} would run code that the model writes",
                    remedy="Leave it out, or run lm-eval itself",
                )


def score(suite: Suite, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    """Return what the harness tells of one model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    batch = _BATCH if model.device.type == "cpu" else "auto"
    with contextlib.redirect_stdout(sys.stderr):  # the harness prints; stdout is for the report
        results: Mapping[str, Any] = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch),
            tasks=list(suite.names),
            task_manager=suite.manager,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
        )
    return results


def side_by_side(original: Mapping[str, Any], converted: Mapping[str, Any]) -> Iterator[Benchmark]:
    """Yield every metric of what `score` returned of two models."""
    for task, scores in original["results"].items():
        others = converted["results"][task]
        config = original["configs"].get(task, {})
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = f"{metric}_stderr,{filtered}"
            yield Benchmark(
                task=task,
                metric=metric if filtered == "none" else f"{metric}, {filtered}",
                higher_is_better=original["higher_is_better"].get(task, {}).get(metric),
                samples=original["n-samples"].get(task, {}).get("effective"),
                shots=original["n-shot"].get(task),
                dataset=str(config.get("dataset_path") or task),
                original=float(value),
                original_error=_number(scores.get(error)),
                converted=float(others[key]),
                converted_error=_number(others.get(error)),
            )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
