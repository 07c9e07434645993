"""Standard benchmarks on tasks of our own: scores against a plain loop over the models, and every refusal.

The tasks are YAML files over local JSON lines, as a user of `--task-path` would write them: a multiple choice
between three words, how the line goes on in the text that the reference checkpoint never saw.
"""

import functools
import json
import math
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import BenchmarkError
from mha2gqa.files.reader import read_json
from mha2gqa.files.source import find_source
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.load import load_model, load_tokenizer
from mha2gqa.reference.corpus import held_out_files, read_documents
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.verify import benchmarks
from mha2gqa.verbs.verify.benchmarks import Suite, find_tasks, run_tasks

ORIGINAL = find_source(None).directory
CONFIG = read_json(ORIGINAL / "config.json")
DOCUMENTS = 40


@pytest.fixture(autouse=True)
def _only_own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the harness's 14,000 tasks, which take it seconds to list."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))


def find(names: Sequence[str], path: Path | None) -> Suite:
    return find_tasks(names, path, Architecture(CONFIG).outline)


def documents() -> Iterator[dict[str, Any]]:
    """Yield the first words of a line and three words that could follow."""
    draw = random.Random(0)
    lines = [line.split() for text in read_documents(held_out_files()) for line in text.splitlines()]
    lines = [words for words in lines if len(words) >= 5]
    for words in draw.sample(lines, DOCUMENTS):
        choices = [words[3], *(draw.choice(draw.choice(lines)) for _ in range(2))]
        answer = draw.randrange(3)
        choices[0], choices[answer] = choices[answer], choices[0]
        yield {"start": " ".join(words[:3]), "choices": choices, "answer": answer}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with two tasks over the same documents, and a group of both."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    data = tmp_path / "lines.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    for name, metric in (("next_word", "acc"), ("next_word_by_length", "acc_norm")):
        write_task(directory, name, data, metric)
    group = {
        "group": "words",
        "task": ["next_word", "next_word_by_length"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (directory / "words.yaml").write_text(yaml.safe_dump(group))
    return directory


def write_task(directory: Path, name: str, data: Path, metric: str = "acc", **overrides: Any) -> None:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in {"acc", metric}],
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump({**task, **overrides}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The reference checkpoint and its conversion to two KV heads."""
    output = tmp_path_factory.mktemp("converted") / "gqa2"
    convert(ConvertOptions(groups=2, output=output))
    return load_model(ORIGINAL), load_model(output)


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, document: dict[str, Any]
) -> list[float]:
    """Return log P(choice | start) of each choice, one forward pass each."""
    values = []
    for choice in document["choices"]:
        start = tokenizer(document["start"], add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"{document['start']} {choice}", add_special_tokens=False)["input_ids"]
        log_probabilities = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        values.append(sum(log_probabilities[at - 1, whole[at]].item() for at in range(len(start), len(whole))))
    return values


def accuracies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[float], list[float]]:
    """Return, document by document, whether the likeliest choice is right: as it is, and by its length."""
    plain, by_length = [], []
    for document in documents():
        values = log_likelihoods(model, tokenizer, document)
        scaled = [value / len(choice) for value, choice in zip(values, document["choices"], strict=True)]
        plain.append(float(values.index(max(values)) == document["answer"]))
        by_length.append(float(scaled.index(max(scaled)) == document["answer"]))
    return plain, by_length


def test_scores_are_those_of_a_plain_loop(tasks: Path, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    tokenizer = load_tokenizer(ORIGINAL)
    done: list[tuple[int, int]] = []
    found = run_tasks(find(["words"], tasks), *models, tokenizer, lambda *step: done.append(step))
    assert done == [(1, 2), (1, 2)]
    scores = {(one.task, one.metric): one for one in found}
    assert scores.keys() == {
        ("next_word", "acc"),
        ("next_word_by_length", "acc"),
        ("next_word_by_length", "acc_norm"),
        ("words", "acc"),
    }
    plain, by_length = zip(*(accuracies(model, tokenizer) for model in models), strict=True)
    for task, metric, (original, converted) in (
        ("next_word", "acc", plain),
        ("next_word_by_length", "acc_norm", by_length),
    ):
        one = scores[task, metric]
        assert one.original == pytest.approx(statistics.fmean(original))
        assert one.converted == pytest.approx(statistics.fmean(converted))
        assert one.original_error == pytest.approx(statistics.stdev(original) / math.sqrt(DOCUMENTS))
        assert (one.samples, one.shots, one.dataset, one.higher_is_better) == (DOCUMENTS, 0, "json", True)
    assert scores["words", "acc"].original == scores["next_word", "acc"].original
    assert plain[0] != plain[1], "a test that cannot tell the two models apart"


def test_what_the_harness_prints_is_kept_off_stdout(
    tasks: Path,
    models: tuple[PreTrainedModel, PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmarks, "_BATCH", "auto")
    run_tasks(find(["next_word"], tasks), *models, load_tokenizer(ORIGINAL), lambda *_: None)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "largest batch size" in printed.err


def test_patterns_and_repetitions_name_each_task_once(tasks: Path) -> None:
    assert find(["next_*", "next_word"], tasks).names == ("next_word", "next_word_by_length")


def test_the_harness_s_own_tasks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", TaskManager)
    with pytest.raises(BenchmarkError, match=r"no task 'helaswag'.*such as.*hellaswag"):
        find(["helaswag"], None)


def test_an_unknown_task_names_those_that_are_close(tasks: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"no task 'nextword'.*next_word"):
        find(["next_word", "nextword"], tasks)


def test_a_task_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="No such directory"):
        find(["next_word"], tmp_path / "absent")


def test_data_that_cannot_be_read_is_refused(tasks: Path) -> None:
    write_task(tasks, "no_data", tasks / "absent.jsonl")
    with pytest.raises(BenchmarkError, match=r"'no_data' cannot be loaded: FileNotFoundError.*absent\.jsonl"):
        find(["no_data"], tasks)


def test_a_task_that_runs_code_is_refused(tasks: Path) -> None:
    write_task(tasks, "runs_code", tasks.parent / "lines.jsonl", unsafe_code=True)
    with pytest.raises(BenchmarkError, match="'runs_code' would run code"):
        find(["runs_code"], tasks)


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(BenchmarkError, match=r"pip install 'mha2gqa\[eval\]'"):
        find(["hellaswag"], None)


@pytest.mark.parametrize("name", ["EuroBertForMaskedLM", "EuroBertModel"])
def test_models_without_a_next_token_are_refused(name: str) -> None:
    config = {"model_type": "eurobert", "architectures": [name]}
    with pytest.raises(BenchmarkError, match=f"does not run {name}: it predicts no next token"):
        find_tasks(["hellaswag"], None, Architecture(config).outline)
