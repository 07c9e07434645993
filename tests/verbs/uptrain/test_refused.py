"""What cannot be trained is refused with one message, before anything is trained, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.files import staging
from tests.verbs.uptrain.subjects import save_documents, save_subject
from tests.verbs.verify.subjects import converted, edit_json, save_source, save_text, save_tokenizer

Refuse = Callable[..., None]


@pytest.fixture
def subject(tmp_path: Path) -> tuple[Path, Path]:
    return save_subject(tmp_path)


def _run(subject: tuple[Path, Path], *more: Any, data: Any = None) -> tuple[Any, ...]:
    return ("uptrain", subject[0], "--data", data or subject[1], "--context", 32, "--steps", 2, *more)


def test_data_that_is_missing(subject: tuple[Path, Path], refuse: Refuse) -> None:
    refuse(*_run(subject, data="nothing.jsonl"), says=("nothing.jsonl", "There is no file"))
    refuse("uptrain", subject[0], "--steps", 2, says=("none was given", "--data self"))
    refuse(*_run(subject, "--data", "self"), says=("self stands beside other text",))
    refuse(*_run(subject, "--held-out", "no.txt"), says=("no.txt",))
    refuse(*_run(subject, data="random"), says=("'random' is no text that answers could be learned from",))
    refuse(*_run(subject, "--held-out", "self"), says=("'self' is no text", "Expected text."))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", ("empty.txt holds no text",)),
        ("blank.txt", b" \n \n", ("blank.txt holds no text",)),
        ("latin.txt", "caf\xe9 \xfc".encode("latin-1"), ("latin.txt", "cannot be decoded", "iconv")),
        ("broken.jsonl", b'{"text": \n', ("broken.jsonl", "cannot be read")),
        ("numbers.jsonl", b'{"text": 3}\n', ("numbers.jsonl", "holds int")),
        ("columns.jsonl", b'{"one": "A", "two": "B"}\n', ("columns.jsonl", "--column")),
    ],
)
def test_bad_data(
    name: str, content: bytes, says: tuple[str, ...], subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse
) -> None:
    (tmp_path / name).write_bytes(content)
    refuse(*_run(subject, data=name), says=says)


def test_a_column_that_is_not_there(subject: tuple[Path, Path], refuse: Refuse) -> None:
    refuse(*_run(subject, "--column", "body"), says=("no column 'body'", "text"))


def test_text_that_is_too_short(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "short.txt").write_text("A FEW WORDS")
    refuse(*_run(subject, data="short.txt"), says=("not one block of 32 tokens", "--context"))


def test_data_that_goes_bad_on_the_way(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    good = subject[1].read_text().splitlines()
    (tmp_path / "late.jsonl").write_text("\n".join([*good[:20], '{"text": 7}']) + "\n")
    refuse(*_run(subject, data="late.jsonl"), says=("late.jsonl",))


def test_one_huge_line_is_read(subject: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Any]) -> None:
    save_text(tmp_path / "line.txt", 20_000)
    answer = cli(*_run(subject, "--held-out-tokens", 64, "--trainer", "per_device_train_batch_size=2", data="line.txt"))
    assert answer.code == 0, answer.err


def test_a_tokenizer_that_does_not_fit(subject: tuple[Path, Path], refuse: Refuse) -> None:
    save_tokenizer(subject[0], first=100)
    refuse(*_run(subject), says=("The tokenizer gives token", "the model knows 128"))


def test_a_tokenizer_that_is_missing(subject: tuple[Path, Path], refuse: Refuse) -> None:
    for path in subject[0].glob("tokenizer*"):
        path.unlink()
    refuse(*_run(subject), says=("tokenizer", "cannot be loaded"))


def test_more_groups_than_the_record_says(subject: tuple[Path, Path], refuse: Refuse) -> None:
    edit_json(subject[0] / "mha2gqa.json", "target_heads", value=1)
    refuse(*_run(subject), says=("has 2 KV heads, and its record says 1",))


def test_a_teacher_of_another_vocabulary(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    other = save_source(tmp_path / "other", vocab_size=120)
    refuse(*_run(subject, "--against", other), says=("different vocabularies", "128", "120"))


def test_an_original_that_is_gone_and_needed(subject: tuple[Path, Path], refuse: Refuse) -> None:
    shutil.rmtree(subject[0].parent / "original")
    refuse(*_run(subject, "--objective", "distil"), says=("--objective distil learns from the original", "--against"))
    refuse(*_run(subject, data="self"), says=("written by the original", "--against"))


def test_what_was_not_converted(subject: tuple[Path, Path], refuse: Refuse) -> None:
    refuse("uptrain", subject[0].parent / "original", "--steps", 2, says=("There is no mha2gqa.json",))


def test_an_output_that_is_there(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    refuse(*_run(subject, "-o", "taken"), says=("taken exists",))
    refuse(*_run(subject, "-o", "taken", "--force"), says=("was not made by mha2gqa",))


def test_an_output_inside_the_original(subject: tuple[Path, Path], refuse: Refuse) -> None:
    refuse(*_run(subject, "-o", "original/trained"), says=("the source", "original lie inside one another"))


def test_no_space_for_checkpoints(subject: tuple[Path, Path], refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (subject[0] / "model.safetensors").stat().st_size
    usage = staging.shutil.disk_usage("/")._replace(free=3 * size)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    refuse(*_run(subject), says=("needs", "free"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--temperature", 0), ("--lm-weight", 1.5), ("--hidden-weight", -1), ("--lora-rank", 0), ("--context", 100_000)],
)
def test_numbers_out_of_range(option: str, value: float, subject: tuple[Path, Path], refuse: Refuse) -> None:
    refuse("uptrain", subject[0], "--data", subject[1], "--steps", 2, option, value, says=(option, str(value)))


def test_a_model_without_a_next_token(tmp_path: Path, refuse: Refuse) -> None:
    made = converted(save_source(tmp_path / "eurobert", "eurobert"), tmp_path / "made", 2)
    documents = save_documents(tmp_path / "documents.jsonl")
    refuse("uptrain", made, "--data", documents, "--steps", 2, says=("no next token", "--refine distil"))


def test_keys_and_values_that_no_conversion_touched(tmp_path: Path, refuse: Refuse) -> None:
    made = converted(save_source(tmp_path / "source"), tmp_path / "same", 4)
    documents = save_documents(tmp_path / "documents.jsonl")
    run = ("uptrain", made, "--data", documents, "--context", 32, "--steps", 2, "--objective", "lm", "--train", "kv")
    refuse(*run, says=("--train kv finds nothing to train", "--train all"))


def test_heads_that_were_not_merged_have_nothing_to_win_back(tmp_path: Path, refuse: Refuse) -> None:
    made = converted(save_source(tmp_path / "source"), tmp_path / "same", 4)
    documents = save_documents(tmp_path / "documents.jsonl")
    run = ("uptrain", made, "--data", documents, "--context", 32, "--steps", 2, "--train", "all")
    refuse(*run, says=("Nothing is lost", "--objective lm"))


def test_samples_that_are_something_else(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps({"text": "A"}) + "\n" * 20)
    refuse(*_run(subject, "--samples", "samples.jsonl", data="self"), says=("samples.jsonl holds no samples",))
