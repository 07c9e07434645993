"""`verify --report`, `--write-card` and `--tasks` from the command line: what they leave, and what is refused first."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from lm_eval.tasks import TaskManager

from tests.conftest import Run
from tests.verbs.verify.subjects import converted, save_source, save_text

Cli = Callable[..., Run]
TEXT = ("--data", "text.txt", "--context", 32)


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """A conversion, a text, and a benchmark on local data."""
    converted(save_source(tmp_path / "source"), tmp_path / "converted", 2)
    save_text(tmp_path / "text.txt", 200)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "lines.jsonl").write_text(json.dumps({"start": "AB", "choices": ["C", "D"], "answer": 0}) + "\n" * 2)
    task = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "lines.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
    }
    (tmp_path / "tasks/letters.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def test_everything_at_once(cli: Cli, subject: Path) -> None:
    extras = ("--report", "page", "--write-card", "--tasks", "letters", "--task-path", "tasks", "--json")
    run = cli("verify", "converted", *TEXT, *extras)
    assert run.code == 3
    assert "The page is page/report.html" in run.err
    report = json.loads(run.out)
    (score,) = (one for one in report["benchmarks"] if one["metric"] == "acc")
    assert (score["task"], score["samples"]) == ("letters", 1)
    assert [one["module"] for one in report["similarity"]] == [f"model.layers.{n}.self_attn" for n in range(2)]
    page = (subject / "page/report.html").read_text()
    for seen in ("Different", "letters", "model.layers.1.self_attn", f"{report['outputs']['kl']['mean']:.4g}"):
        assert seen in page
    numbers = {
        one.metric_type: one.metric_value for one in ModelCard.load(subject / "converted/README.md").data.eval_results
    }
    assert numbers["kl_divergence"] == pytest.approx(report["outputs"]["kl"]["mean"], rel=1e-5)
    assert numbers["acc"] == score["converted"]
    again = cli("verify", "converted", *TEXT, "--level", "file")
    assert again.code == 0, "the card takes no part in the comparison of files"


def test_a_terminal_shows_both_columns(cli: Cli, subject: Path) -> None:
    run = cli("verify", "converted", "--level", "file", "--tasks", "letters", "--task-path", "tasks")
    assert run.code == 0
    (header,) = (line.split() for line in run.out.splitlines() if line.startswith("benchmark"))
    assert header == ["benchmark", "original", "converted", "difference"]
    assert "letters, acc " in run.out


def test_nothing_extra_is_left_unless_asked_for(cli: Cli, subject: Path, tree: Callable[[Path], object]) -> None:
    before = tree(subject)
    run = cli("verify", "converted", *TEXT, "--json")
    assert run.code == 3
    assert tree(subject) == before
    assert json.loads(run.out)["benchmarks"] == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--report", "text.txt"), "The page cannot be written into text.txt"),
        (("--tasks", "leters", "--task-path", "tasks"), "no task 'leters'. Expected a name such as letters"),
        (("--tasks", "letters", "--task-path", "absent"), "No such directory: 'absent'"),
        (("--write-card",), "The header of converted/README.md is no YAML"),
    ],
)
def test_refusals_come_before_any_work(
    cli: Cli, subject: Path, arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mha2gqa.verbs.verify.run.check_files", None)
    (subject / "converted/README.md").write_text("---\nlicense: [\n---\n")
    run = cli("verify", "converted", *TEXT, *arguments)
    assert run.code == 1
    assert problem in run.err
    assert run.out == ""


@pytest.mark.parametrize("arguments", [("--task-path", "tasks"), ("--tasks", " , ")])
def test_options_without_a_task_are_wrong_usage(cli: Cli, subject: Path, arguments: tuple[str, ...]) -> None:
    run = cli("verify", "converted", *TEXT, *arguments)
    assert run.code == 2
    assert "--tasks needs the name of a benchmark" in run.err


def test_benchmarks_of_a_model_that_does_not_load_are_said_to_be_missing(cli: Cli, subject: Path) -> None:
    (subject / "converted/model.safetensors").write_bytes(b"\0" * 8)
    run = cli("verify", "converted", *TEXT, "--tasks", "letters", "--task-path", "tasks", "--report", "page")
    assert run.code == 3
    assert "The benchmarks were not run" in " ".join(run.out.split())
    assert "The benchmarks were not run" in (subject / "page/report.html").read_text()
