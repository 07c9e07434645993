"""Adds the measured numbers of a verification to the card of the converted checkpoint.

They become results in the card's `model-index`, which the Hub shows; each is marked as ours, so that a second
run replaces what the first one wrote. Results that others wrote there stay, and so does every other byte: neither the
text nor the other keys of the YAML header nor the comments between them are written anew. A header in which that cannot
be done (one key a line is the rule) is refused.

The card that `convert` writes is `record/card.py`'s.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from mha2gqa.errors import OutputError
from mha2gqa.verbs.verify.levels import OutputsLevel
from mha2gqa.verbs.verify.outcome import Benchmark, Verification

CARD = "README.md"
_KEY = "model-index"
_MARK = {"measured_by": "mha2gqa verify"}
_HEADER = re.compile(r"\A(\s*---(?:\r\n|\r|\n))(.*?)(^---[ \t]*$)", re.DOTALL | re.MULTILINE)
_LAST_COMMENTS = re.compile(r"(?:^[ \t]*(?:#[^\n]*)?\n)*\Z", re.MULTILINE)


@dataclass(frozen=True)
class FrontMatter:
    """A file with its header cut out; together they are the file."""

    path: Path
    before: str
    header: str
    after: str

    @property
    def content(self) -> dict[str, Any]:
        """The header's keys and values.

        Raises:
            OutputError: It is no YAML, or no mapping.
        """
        try:
            content = yaml.safe_load(self.header) or {}
        except yaml.YAMLError as error:
            raise _refusal(f"The header of {self.path} is no YAML: {error}") from error
        if not isinstance(content, dict):
            raise _refusal(f"The header of {self.path} holds no keys")
        return content

    def with_key(self, key: str, value: Any) -> "FrontMatter":
        """Return the file with another value of a key, which is added where it is not there.

        Raises:
            OutputError: The notation of the header does not allow it.
        """
        block = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=1000)
        if "\r\n" in self.before:
            block = block.replace("\n", "\r\n")
        start, end = self._span(key)
        changed = FrontMatter(self.path, self.before, self.header[:start] + block + self.header[end:], self.after)
        wanted = {name: held for name, held in self.content.items() if name != key}
        if {name: held for name, held in changed._parsed().items() if name != key} != wanted:
            raise _refusal(f"The header of {self.path} is written in a way in which {key} cannot be set alone")
        return changed

    def _parsed(self) -> dict[str, Any]:
        """Return the keys and values, nothing where the header cannot be read."""
        try:
            return self.content
        except OutputError:
            return {}

    def _span(self, key: str) -> tuple[int, int]:
        """Return where a key and its value begin and end in the header; both the end, where it is not there."""
        root = yaml.compose(self.header, Loader=yaml.SafeLoader)
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        starts = [name.start_mark.index for name, _ in pairs] + [len(self.header)]
        for (name, _), end in zip(pairs, starts[1:], strict=True):
            if name.value == key:
                start = name.start_mark.index
                comments = _LAST_COMMENTS.search(self.header[start:end])
                return start, start + comments.start() if comments else end
        return len(self.header), len(self.header)

    def write(self) -> None:
        """Put the file in the place of the old one, or leave the old one.

        Raises:
            OutputError: It cannot be written.
        """
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            try:
                partial.write_bytes(f"{self.before}{self.header}{self.after}".encode())
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"Writing {self.path} failed: {error.strerror}", remedy="It is as it was") from error


def read_front_matter(path: Path) -> FrontMatter:
    """Read a file; one that is absent is empty, and one without a header gets one.

    Raises:
        OutputError: It cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(f"{path} cannot be read: {error}") from error
    if match := _HEADER.match(text):
        return FrontMatter(path, match[1], match[2], text[match.start(3) :])
    newline = "\r\n" if "\r\n" in text else "\n"
    return FrontMatter(path, f"---{newline}", "", f"---{newline}{text}")


def _refusal(problem: str) -> OutputError:
    return OutputError(
        problem, expected="a header in YAML, one `key: value` a line", remedy="Repair it, or leave out --write-card"
    )


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
