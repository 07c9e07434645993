"""Adds the measured numbers of a verification to the card of the converted checkpoint.

They become results in the card's `model-index`, which the Hub shows; each is marked as ours, so that a second
run replaces what the first one wrote. Results that others wrote there stay, and so does every byte outside it
(`front_matter.py`).

The card that `convert` writes is `record/card.py`'s.
"""

import math
import os
from collections.abc import Iterable, Iterator
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
    indices = [eval_results_to_model_index("", numbers) for numbers in _numbers(report)]
    if results := [result for index in indices for result in index[0]["results"]]:
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


def _numbers(report: Verification) -> Iterator[list[EvalResult]]:
    """Yield what was measured on each dataset."""
    if report.outputs:
        yield list(_output_numbers(report.outputs))
    for _, scores in groupby(report.benchmarks, key=lambda one: one.task):
        yield [number for one in scores for number in _benchmark_numbers(one)]


def _results(values: Iterable[tuple[str, str, float]], **dataset: Any) -> Iterator[EvalResult]:
    """Yield metric, name and value of what was measured on a data set; a number that is not finite is left out."""
    for metric, name, value in values:
        if math.isfinite(value):
            number = float(f"{value:.6g}")
            yield EvalResult(metric_type=metric, metric_name=name, metric_value=number, **dataset)


def _output_numbers(outputs: OutputsLevel) -> Iterator[EvalResult]:
    values: list[tuple[str, str, float]] = []
    if outputs.loss:
        before, after = outputs.loss.perplexities
        values += [("perplexity", "Perplexity", after), ("original_perplexity", "Perplexity of the original", before)]
    values += [
        ("kl_divergence", "KL divergence from the original, nats a token", outputs.kl.mean),
        ("top1_agreement", "Same most likely token as the original", outputs.top1),
    ]
    return _results(
        values,
        task_type="text-generation" if outputs.loss else "fill-mask",
        dataset_type="text",
        dataset_name=outputs.text.description,
        dataset_args={**_MARK, "tokens": outputs.text.tokens, "context": outputs.text.context},
    )


def _benchmark_numbers(one: Benchmark) -> Iterator[EvalResult]:
    original = (f"original_{one.metric}", f"{one.metric} of the original", one.original)
    return _results(
        [(one.metric, one.metric, one.converted), original],
        task_type="text-generation",
        dataset_type=one.dataset,
        dataset_name=one.task,
        dataset_args=_MARK | ({"num_few_shot": one.shots} if one.shots is not None else {}),
    )
