"""Adds the measured numbers of a verification to the card of the converted checkpoint.

They become results in the card's `model-index`, which the Hub shows; each is marked as ours, so that a second
run replaces what the first one wrote. Nothing else in `README.md` changes by a single byte: not the text, not the
other metadata, not the comments between them. Results that others wrote into the `model-index` stay.

The card that `convert` writes is `checkpoint/card.py`'s.
"""

import math
import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from mha2gqa.errors import OutputError
from mha2gqa.evaluation.results import Benchmark, OutputsLevel, Verification

CARD = "README.md"
_KEY = "model-index"
_MARK = {"measured_by": "mha2gqa verify"}
_HEADER = re.compile(r"\A(\s*---(?:\r\n|\r|\n))(.*?)(^---[ \t]*$)", re.DOTALL | re.MULTILINE)


def check_card(directory: Path) -> None:
    """Refuse a card that numbers cannot be added to, before anything is measured.

    Raises:
        OutputError: It cannot be read or written, or its header is no YAML.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(f"Cannot write into {directory}", remedy="Leave out --write-card, or change its permissions")
    _results(directory / CARD, _split(_read(directory / CARD))[1])


def write_numbers(report: Verification, directory: Path) -> Path:
    """Put the numbers of `report` into the card in `directory`, in the place of those of an earlier run.

    Returns:
        The card.

    Raises:
        OutputError: As `check_card`.
    """
    path = directory / CARD
    before, header, after = _split(_read(path))
    newline = "\r\n" if "\r\n" in before else "\n"
    index = _merged(_results(path, header), report, directory.resolve().name)
    block = (
        yaml.safe_dump({_KEY: index}, sort_keys=False, allow_unicode=True, width=1000).replace("\n", newline)
        if index
        else ""
    )
    start, end = _span(header)
    added = header[:start] + block + header[end:]
    _check_kept(path, header, added)
    _replace(path, before + added + after)
    return path


def _read(path: Path) -> str:
    """Return the card with its line ends as they are; an absent one is empty."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path} cannot be read: {error}", remedy="Leave out --write-card, or repair it") from error


def _split(text: str) -> tuple[str, str, str]:
    """Return a card as what opens its header, the header, and the rest; a header is made where there is none."""
    if match := _HEADER.match(text):
        return match[1], match[2], text[match.start(3) :]
    newline = "\r\n" if "\r\n" in text else "\n"
    return f"---{newline}", "", f"---{newline}{text}"


def _results(path: Path, header: str) -> list[dict[str, Any]]:
    """Return the `model-index` of a header."""
    remedy = "Leave out --write-card, or repair it"
    try:
        content = yaml.safe_load(header) or {}
    except yaml.YAMLError as error:
        raise OutputError(f"The header of {path} is no YAML: {error}", remedy=remedy) from error
    index = content.get(_KEY, []) if isinstance(content, dict) else None
    if not isinstance(index, list) or not all(
        isinstance(model, dict) and isinstance(model.get("results", []), list) for model in index
    ):
        raise OutputError(f"{path} has a {_KEY} that is no list of models with results", remedy=remedy)
    return index


def _span(header: str) -> tuple[int, int]:
    """Return where the `model-index` begins and ends in a header; both the end, where there is none."""
    root = yaml.compose(header, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    starts = [key.start_mark.index for key, _ in pairs] + [len(header)]
    for (key, _), end in zip(pairs, starts[1:], strict=True):
        if key.value == _KEY:
            start = key.start_mark.index
            trailing = re.search(r"(?:^[ \t]*(?:#[^\n]*)?\n)*\Z", header[start:end], re.MULTILINE)
            return start, start + trailing.start() if trailing else end
    return len(header), len(header)


def _check_kept(path: Path, header: str, added: str) -> None:
    """Refuse to write a header in which anything else would mean something else, as after an unusual notation."""
    kept = [{key: value for key, value in (content or {}).items() if key != _KEY} for content in _parsed(header, added)]
    if not kept or kept[0] != kept[-1]:
        raise OutputError(
            f"The numbers cannot be added to the header of {path}",
            expected="one `key: value` a line",
            remedy="Leave out --write-card, or rewrite the header",
        )


def _parsed(*headers: str) -> list[Any]:
    try:
        return [yaml.safe_load(header) for header in headers]
    except yaml.YAMLError:
        return []


def _merged(index: list[dict[str, Any]], report: Verification, name: str) -> list[dict[str, Any]]:
    """Return a `model-index` without what we wrote before and with what was measured now."""
    own = [result for numbers in _numbers(report) for result in _as_results(numbers)]
    others = [
        {**model, "results": [result for result in model.get("results", []) if not _is_ours(result)]} for model in index
    ]
    if not others:
        return [{"name": name, "results": own}] if own else []
    return [{**others[0], "results": others[0]["results"] + own}, *others[1:]]


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


def _replace(path: Path, text: str) -> None:
    """Put a whole new card in the place of the old one, or leave the old one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            partial.write_bytes(text.encode("utf-8"))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"Writing {path} failed: {error.strerror}", remedy="The card is as it was") from error
