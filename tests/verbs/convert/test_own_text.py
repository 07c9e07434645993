"""Where no text was named, a method that makes use of text reads what the model writes, if it can."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families.tiny import save_tiny
from tests.verbs.verify.subjects import save_source

ALIGNED = ("-g", 2, "-o", "out", "--method", "aligned", "--tokens", 256, "--context", 16, "--json")


def made(cli: Any, source: Path, *more: object) -> dict[str, Any]:
    answer = cli("convert", source, *ALIGNED, *more)
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    record = Path("out/mha2gqa.json")
    return {**report, "options": json.loads(record.read_text())["options"] if record.exists() else {}}


def test_the_model_writes_and_the_plan_says_so(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_source(tmp_path / "source")
    with monkeypatch.context() as unloaded:
        unloaded.setattr("mha2gqa.verbs.convert.reading.load_original", pytest.fail)
        (note,) = made(cli, source, "--dry-run")["notes"]
    assert "first writes 256 tokens" in note and "up to 1 minute on a processor" in note and "--data none" in note
    by_itself = made(cli, source)
    assert by_itself["options"]["data"] == ["self"] and by_itself["options"]["tokens"] == 256
    assert by_itself["text"].startswith("text sampled from the original itself") and not by_itself["notes"]
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    asked = made(cli, source, "--data", "self", "--force")
    assert (tmp_path / "out/model.safetensors").read_bytes() == weights and asked["options"] == by_itself["options"]
    guess = made(cli, source, "--data", "none", "--force")
    assert (guess["text"], guess["options"]["data"], guess["notes"]) == (None, ["none"], [])
    assert (tmp_path / "out/model.safetensors").read_bytes() != weights
    assert made(cli, source, "--data", "random", "--force")["text"] == "tokens drawn at random (seed 0)"
    assert (tmp_path / "out/model.safetensors").read_bytes() != weights


@pytest.mark.parametrize("asked", ["--refine refit", "--method auto", "--groups auto --cache 50%", "--latent 8"])
def test_what_goes_by_losses_wants_text(asked: str, tmp_path: Path, cli: Any) -> None:
    source = save_source(tmp_path / "source")
    target = () if "--groups" in asked or "--latent" in asked else ("--groups", "2")
    answer = cli("convert", source, *target, *asked.split(), "--data", "random", "-o", "out")
    assert (answer.code, "--data random does not go with" in answer.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["random", "none"])
def test_no_text_is_nothing_to_compare_on(word: str, tmp_path: Path, cli: Any, refuse: Any) -> None:
    source = save_source(tmp_path / "source")
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    refuse("verify", "out", "--data", word, says=(f"'{word}' is no text that answers could be", "text or self"))


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("eurobert", "EuroBertForMaskedLM does not continue text"),
        ("t5", "ForConditionalGeneration does not continue text"),
        ("llama", "The tokenizer of"),
    ],
)
def test_what_cannot_write_is_guessed(model_type: str, why: str, tmp_path: Path, cli: Any) -> None:
    save_tiny(model_type, tmp_path / "source")
    report = made(cli, Path("source"))
    assert report["options"]["data"] == ["none"] and report["text"] is None
    assert "guessed from the weights" in report["notes"][0] and why in report["notes"][0]


def test_a_model_that_does_not_fit_is_not_run(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mha2gqa.verbs.convert.own_text._BESIDE", 1e12)
    (note,) = made(cli, save_source(tmp_path / "source"))["notes"]
    assert "does not fit into the memory" in note


def test_modules_of_which_text_tells_nothing_are_no_refusal(tmp_path: Path, cli: Any) -> None:
    save_source(tmp_path / "source", "bart")  # a decoder alone, whose cross-attention has nothing to read
    note, of_engines = made(cli, Path("source"))["notes"]
    assert "code beside the weights" in of_engines
    assert "without ever calling model.decoder.layers.0.encoder_attn" in note


def test_a_mean_says_what_it_costs(tmp_path: Path, cli: Any) -> None:
    save_tiny("llama", tmp_path / "source")
    told = [
        " ".join(cli("convert", "source", "-g", 2, *more, "-o", "out").out.split()) for more in (("--dry-run",), ())
    ]
    assert all("averaging heads that were trained independently breaks the model" in one for one in told)
