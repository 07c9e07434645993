"""Adds the measured numbers of a verification to the card of the converted checkpoint.

They become results in the card's `model-index`, which the Hub shows; each is marked as ours, so that a second
run replaces what the first one wrote. Results that others wrote there stay, and so does every byte outside it
(`front_matter.py`).

The card that `convert` writes is `checkpoint/card.py`'s.
"""

import math
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from mha2gqa.errors import OutputError
from mha2gqa.pages.front_matter import FrontMatter, read_front_matter
from mha2gqa.verbs.verify.levels import OutputsLevel
from mha2gqa.verbs.verify.outcome import Benchmark, Verification

CARD = "README.md"
_KEY = "model-index"
_MARK = {"measured_by": "mha2gqa verify"}


def check_card(directory: Path) -> None:
    """Refuse a card that numbers cannot be added to, before anything is measured.

    Raises:
        OutputError: It cannot be read or written, or its header is not of the usual form.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(f"Cannot write into {directory}", remedy="Leave out --write-card, or change its permissions")
    card = read_front_matter(directory / CARD)
    card.with_key(_KEY, [*_index(card), {"name": "probe", "results": []}])


def write_numbers(report: Verification, directory: Path) -> Path:
    """Put the numbers of `report` into the card in `directory`, in the place of those of an earlier run.

    A report without numbers changes nothing.

    Returns:
        The card.

    Raises:
        OutputError: As `check_card`.
    """
    card = read_front_matter(directory / CARD)
    if results := [result for numbers in _numbers(report) for result in _as_results(numbers)]:
        card.with_key(_KEY, _merged(_index(card), results, directory.resolve().name)).write()
    return card.path


def _index(card: FrontMatter) -> list[dict[str, Any]]:
    """Return the `model-index` of a card."""
    index = card.content.get(_KEY) or []
    if isinstance(index, list) and all(
        isinstance(model, dict) and isinstance(model.get("results", []), list) for model in index
    ):
        return index
    raise OutputError(
        f"{card.path} has a {_KEY} that is no list of models with results",
        remedy="Repair it, or leave out --write-card",
    )


def _merged(index: list[dict[str, Any]], own: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return a `model-index` without what we wrote before and with what was measured now."""
    others = [
        {**model, "results": [result for result in model.get("results", []) if not _is_ours(result)]} for model in index
    ]
    first, *more = others or [{"name": name, "results": []}]
    return [{**first, "results": first["results"] + own}, *more]


def _is_ours(result: Any) -> bool:
    dataset = result.get("dataset") if isinstance(result, dict) else None
    arguments = dataset.get("args") if isinstance(dataset, dict) else None
    return isinstance(arguments, dict) and _MARK.items() <= arguments.items()


def _as_results(numbers: list[EvalResult]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = eval_results_to_model_index("", numbers)[0]["results"]
    return results


def _numbers(report: Verification) -> Iterator[list[EvalResult]]:
    """Yield what was measured on each dataset."""
    if report.outputs:
        yield list(_output_numbers(report.outputs))
    for _, scores in groupby(report.benchmarks, key=lambda one: one.task):
        yield [number for one in scores for number in _benchmark_numbers(one)]


def _output_numbers(outputs: OutputsLevel) -> Iterator[EvalResult]:
    values = [
        ("kl_divergence", "KL divergence from the original, nats a token", outputs.kl.mean),
        ("top1_agreement", "Same most likely token as the original", outputs.top1),
    ]
    if outputs.loss:
        before, after = outputs.loss.perplexities
        values = [
            ("perplexity", "Perplexity", after),
            ("original_perplexity", "Perplexity of the original", before),
            *values,
        ]
    for metric, name, value in values:
        if math.isfinite(value):
            yield EvalResult(
                task_type="text-generation" if outputs.loss else "fill-mask",
                dataset_type="text",
                dataset_name=outputs.text.description,
                dataset_args={**_MARK, "tokens": outputs.text.tokens, "context": outputs.text.context},
                metric_type=metric,
                metric_name=name,
                metric_value=float(f"{value:.6g}"),
            )


def _benchmark_numbers(one: Benchmark) -> Iterator[EvalResult]:
    values = {one.metric: one.converted, f"original_{one.metric}": one.original}
    for metric, value in values.items():
        if math.isfinite(value):
            yield EvalResult(
                task_type="text-generation",
                dataset_type=one.dataset,
                dataset_name=one.task,
                dataset_args=_MARK | ({"num_few_shot": one.shots} if one.shots is not None else {}),
                metric_type=metric,
                metric_name=f"{one.metric} of the original" if metric != one.metric else metric,
                metric_value=float(f"{value:.6g}"),
            )
