"""What `verify` says to do next is a command that can be pasted: each one is given to the command line as it stands."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.record.commands import command_line
from tests.conftest import Run
from tests.verbs.verify.subjects import converted, edit_json, flip_bit, save_source, save_text

Cli = Callable[..., Run]
LIMITS = ("--max-ppl-increase", 0, "--max-kl", 0, "--min-top1", 1)
READ = {"data": ["text.txt"], "tokens": 600, "context": 24}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "the source")
    save_text(tmp_path / "text.txt", 1000)
    converted(tmp_path / "the source", tmp_path / "made", 2)
    return tmp_path


def recorded(work: Path, **options: Any) -> None:
    """Have the record say other options, without the minutes that they would take."""
    for name, value in options.items():
        edit_json(work / "made/mha2gqa.json", "options", name, value=value)


def advice(cli: Cli, *more: object) -> tuple[str, str]:
    """Return the verdict's line, and the command below it; empty without one."""
    run = cli("verify", "made", "--data", "text.txt", "--context", 32, "--tokens", 128, *more)
    assert run.code == 3, run.err
    report, _, last = run.out.rstrip().rpartition("\n")
    is_command = last.startswith("    mha2gqa ")
    return (report.splitlines()[-1], last.strip()) if is_command else (last, "")


OUTPUTS = ("--level", "outputs", *LIMITS)


def test_averaged_heads_are_aligned_by_a_command_that_runs(cli: Cli, work: Path) -> None:
    told, command = advice(cli, *OUTPUTS)
    assert told.rstrip().endswith("convert it with --method aligned, or take more KV heads.")
    assert command == "mha2gqa convert 'the source' --groups 2 --method aligned --output made-aligned"
    assert cli(*shlex.split(command)[1:]).code == 0
    _, second = advice(cli, *OUTPUTS)
    assert second.endswith("--output made-aligned-2")
    assert cli(*shlex.split(second)[1:], "--dry-run").code == 0


@pytest.mark.parametrize(
    ("options", "says", "command"),
    [
        (
            {"method": "aligned", **READ},
            "refine it (--refine refit), or take more KV heads",
            "mha2gqa convert 'the source' --groups 2 --method aligned --data text.txt --refine refit --tokens 600 "
            "--context 24 --output made-refit",
        ),
        (
            {"method": "aligned", "data": ["none"]},
            "refine it (--refine refit), or take more KV heads",
            "mha2gqa convert 'the source' --groups 2 --method aligned --data self --refine refit --output made-refit",
        ),
        (
            {"method": "aligned", **READ, "data": ["gone.txt"], "seed": 7},
            "refine it (--refine refit), or take more KV heads",
            "mha2gqa convert 'the source' --groups 2 --method aligned --seed 7 --data self --refine refit "
            "--output made-refit",
        ),
        (
            {"method": "aligned", "refine": "refit", **READ},
            "distil it (--refine distil), or take more KV heads",
            "mha2gqa convert 'the source' --groups 2 --method aligned --data text.txt --refine distil --tokens 600 "
            "--context 24 --output made-distil",
        ),
        (
            {"method": "mean", "refine": "refit", **READ},
            "convert it with --method aligned, or take more KV heads",
            "mha2gqa convert 'the source' --groups 2 --method aligned --data text.txt --refine refit --tokens 600 "
            "--context 24 --output made-aligned",
        ),
        (
            {"method": "aligned", "refine": "distil", **READ},
            "uptrain it, or take more KV heads",
            "mha2gqa uptrain made --data text.txt --tokens 20M --output made-uptrained",
        ),
        (
            {"method": "aligned", "refine": "joint", "data": ["self"]},
            "uptrain it, or take more KV heads",
            "mha2gqa uptrain made --data self --tokens 20M --output made-uptrained",
        ),
        (
            {"method": "auto", "max-ppl-increase": 0.05, **READ},
            "refine it (--refine refit), or take more KV heads",
            "mha2gqa convert 'the source' --groups 2 --method aligned --data text.txt --refine refit --tokens 600 "
            "--context 24 --output made-refit",
        ),
    ],
)
def test_the_command_is_that_of_this_very_conversion(
    cli: Cli, work: Path, options: dict[str, Any], says: str, command: str
) -> None:
    recorded(work, **options)
    told, found = advice(cli, *OUTPUTS)
    assert says in told
    assert found == command
    planned = cli(*shlex.split(found)[1:], "--dry-run")
    assert planned.code == 0, planned.err


def test_an_original_that_was_named_is_named_again(cli: Cli, work: Path) -> None:
    recorded(work, method="aligned", refine="distil", **READ)
    (work / "the source").rename(work / "moved")
    _, found = advice(cli, *OUTPUTS, "--against", "moved")
    assert found == "mha2gqa uptrain made --against moved --data text.txt --tokens 20M --output made-uptrained"
    assert cli(*shlex.split(found)[1:], "--dry-run").code == 0


def test_a_damaged_checkpoint_is_made_again(cli: Cli, work: Path) -> None:
    flip_bit(work / "made", "model.layers.0.self_attn.q_proj.weight")
    told, command = advice(cli, "--level", "file")
    assert "do not use the checkpoint, make it again" in told
    assert command == "mha2gqa convert 'the source' --groups 2 --output made-again"
    assert cli(*shlex.split(command)[1:]).code == 0


def test_what_the_tool_would_refuse_is_not_advised(cli: Cli, tmp_path: Path) -> None:
    """A model of masks writes no text, and has no next token to be trained on."""
    converted(save_source(tmp_path / "source", "bert"), tmp_path / "made", 2, method="aligned", data=("none",))
    save_text(tmp_path / "text.txt", 1000)
    told, command = advice(cli, *OUTPUTS)
    assert (command, "refine it (--refine refit), or take more KV heads" in told) == ("", True), told
    recorded(tmp_path, refine="distil")
    told, command = advice(cli, *OUTPUTS)
    assert (command, told.rstrip().endswith(": take more KV heads.")) == ("", True), told


def test_programs_and_pages_have_it_too(cli: Cli, work: Path) -> None:
    run = cli("verify", "made", "--data", "text.txt", *OUTPUTS, "--json", "--report", "page")
    remedy = json.loads(run.out)["remedy"]
    assert remedy["text"] == "convert it with --method aligned, or take more KV heads"
    page = (work / "page/report.html").read_text()
    assert "Convert it with --method aligned, or take more KV heads." in page
    assert "--groups 2 --method aligned --output made-aligned</code>" in page


def test_a_checkpoint_that_is_fine_needs_nothing(cli: Cli, work: Path) -> None:
    run = cli("verify", "made", "--data", "text.txt", "--level", "file", "--json")
    assert (run.code, json.loads(run.out)["remedy"]) == (0, None)


@pytest.mark.parametrize(
    ("subject", "options", "command"),
    [
        (None, {"groups": 4}, "mha2gqa convert --groups 4"),
        ("my model", {"groups": {"decoder": 8, "cross": 4}}, "mha2gqa convert 'my model' --groups decoder=8,cross=4"),
        ("-x", {"data": ["a b.txt", "c"], "seed": None}, "mha2gqa convert ./-x --data 'a b.txt' --data c"),
    ],
)
def test_options_are_written_as_they_are_read(subject: str | None, options: dict[str, Any], command: str) -> None:
    assert command_line("convert", subject, options) == command
