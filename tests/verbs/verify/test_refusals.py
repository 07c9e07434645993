"""What cannot be verified is refused: one message that says what is wrong, before anything is run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mha2gqa.files.source import reference_directory
from tests.conftest import Run
from tests.verbs.verify.subjects import converted, edit_json, save_source, save_text

Cli = Callable[..., Run]


@pytest.fixture(scope="module")
def _subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("refusals")
    converted(save_source(directory / "source"), directory / "converted", 2)
    save_text(directory / "text.txt", 100)
    return directory


@pytest.fixture
def subject(_subject: Path, tmp_path: Path) -> Path:
    for name in ("source", "converted"):
        shutil.copytree(_subject / name, tmp_path / name)
    shutil.copy(_subject / "text.txt", tmp_path)
    edit_json(tmp_path / "converted/mha2gqa.json", "source", "path", value=str(tmp_path / "source"))
    return tmp_path


def refused(run: Run, *words: str) -> None:
    assert run.code == 1
    assert run.out == ""
    assert run.err.count("error:") == 1
    assert "Traceback" not in run.err
    for word in words:
        assert word in run.err


def other_source(directory: Path, **overrides: object) -> Path:
    return save_source(directory / "other", **overrides)


def test_different_vocabularies(cli: Cli, subject: Path) -> None:
    other = other_source(subject, vocab_size=160)
    refused(cli("verify", "converted", "--against", other), "different vocabularies", "160", "128", "--against")


def test_different_depths(cli: Cli, subject: Path) -> None:
    other = other_source(subject, num_hidden_layers=3)
    refused(cli("verify", "converted", "--against", other), "different depths", "num_hidden_layers is 3 and 2")


def test_another_family(cli: Cli, subject: Path) -> None:
    other = save_source(subject / "other", "qwen3")
    refused(cli("verify", "converted", "--against", other), "different model types", "'qwen3' and 'llama'")


def test_a_converted_model_of_another_source(cli: Cli, subject: Path) -> None:
    other = shutil.copytree(subject / "source", subject / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    for level in ("file", "outputs"):
        run = cli("verify", "converted", "--against", other, "--level", level)
        refused(run, "was not made from", "other", "another checksum than the record's")


def test_an_original_that_has_changed_in_a_large_tensor_only(cli: Cli, subject: Path) -> None:
    file = subject / "source/model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    refused(cli("verify", "converted", "--level", "file"), "was not made from", "'model.embed_tokens.weight'")


def test_a_missing_tokenizer(cli: Cli, subject: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (subject / "source" / name).unlink(missing_ok=True)
    refused(cli("verify", "converted", "--data", "text.txt"), "The tokenizer of", "source cannot be loaded")
    assert cli("verify", "converted", "--level", "load").code == 0, "which needs no tokenizer"


def test_a_tokenizer_of_a_larger_model(cli: Cli, subject: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference_directory() / name, subject / "source")
    run = cli("verify", "converted", "--data", "text.txt", "--context", 16)
    refused(run, "The tokenizer gives token", "the model knows 128")


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "holds no text"), ("\n \n", "holds no text"), ("short", "at least 32: 1 block of 32")],
)
def test_an_empty_or_too_short_text(cli: Cli, subject: Path, content: str, words: str) -> None:
    (subject / "bad.txt").write_text(content)
    refused(cli("verify", "converted", "--data", "bad.txt", "--context", 32), words)


def test_a_missing_column(cli: Cli, subject: Path) -> None:
    (subject / "rows.jsonl").write_text(json.dumps({"title": "x", "body": "y"}) + "\n")
    run = cli("verify", "converted", "--data", "rows.jsonl", "--column", "content")
    refused(run, "rows.jsonl has no column 'content'", "title, body")


def test_a_missing_file_of_text(cli: Cli, subject: Path) -> None:
    refused(cli("verify", "converted", "--data", "missing.txt"), "There is no file 'missing.txt'")


def test_a_directory_without_a_record(cli: Cli, subject: Path) -> None:
    refused(cli("verify", "source"), "There is no mha2gqa.json", "mha2gqa convert")
    refused(cli("verify", "nowhere"), "No such directory: 'nowhere'")


def test_no_or_several_converted_checkpoints_here(cli: Cli, subject: Path) -> None:
    shutil.copytree(subject / "converted", subject / "another")
    refused(cli("verify"), "2 converted checkpoints here: another, converted")
    shutil.rmtree(subject / "another")
    shutil.rmtree(subject / "converted")
    refused(cli("verify"), "There is no converted checkpoint here")


def test_an_original_that_is_gone(cli: Cli, subject: Path) -> None:
    (subject / "source").rename(subject / "moved")
    refused(cli("verify", "converted"), "not where the record says", "--against")
    assert cli("verify", "converted", "--against", "moved", "--level", "file").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "holds a JSON list"),
        ("{}", "is not a record of this version"),
        ('{"format": 99}', "format 99"),
    ],
)
def test_a_damaged_record(cli: Cli, subject: Path, content: str, words: str) -> None:
    (subject / "converted/mha2gqa.json").write_text(content)
    refused(cli("verify", "converted"), words)


def test_a_context_that_the_model_does_not_have(cli: Cli, subject: Path) -> None:
    run = cli("verify", "converted", "--data", "text.txt", "--context", 1 << 20)
    refused(run, f"--context {1 << 20} does not fit the model")


def test_outputs_of_a_checkpoint_that_does_not_load(cli: Cli, subject: Path) -> None:
    edit_json(subject / "converted/config.json", "num_key_value_heads", value=1)
    run = cli("verify", "converted", "--data", "text.txt", "--context", 16, "--level", "outputs")
    refused(run, "does not load strictly", "k_proj")


def test_a_device_that_is_not_there(cli: Cli, subject: Path) -> None:
    refused(cli("verify", "converted", "--level", "load", "--device", "npu:7"), "no device 'npu:7' here")


def test_a_damaged_original(cli: Cli, subject: Path) -> None:
    file = subject / "source/model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    refused(cli("verify", "converted"), "model.safetensors is damaged")


@pytest.mark.parametrize(
    "arguments", [("--level", "all"), ("--dtype", "int8"), ("--min-top1", "2"), ("--max-kl", "-1"), ("--tokens", "0")]
)
def test_wrong_usage(cli: Cli, subject: Path, arguments: tuple[str, str]) -> None:
    assert cli("verify", "converted", *arguments).code == 2
