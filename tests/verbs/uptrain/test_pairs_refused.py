"""What an encoder-decoder cannot be trained on, and what no text trains, is refused before anything is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import NllbTokenizer

from mha2gqa import ConvertOptions, convert
from mha2gqa.errors import TextError
from mha2gqa.verbs.uptrain.pairs import set_languages
from tests.verbs.uptrain.pair_subjects import EOS, PAD, family, pairs_tokenizer, save_pair_subject
from tests.verbs.uptrain.subjects import save_subject

Refuse = Callable[..., None]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair_subject(tmp_path_factory.mktemp("pairs"))


def run(subject: tuple[Path, Path], *more: Any, data: Any = None) -> tuple[Any, ...]:
    return ("uptrain", subject[0], "--data", data or subject[1], "--steps", 2, *more)


def test_data_without_pairs(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "text.txt").write_text("A B C")
    (tmp_path / "one.jsonl").write_text('{"text": "A"}\n')
    columns = ("--source-column", "--target-column")
    refuse("uptrain", subject[0], "--steps", 2, says=("learns from pairs, and none were given", *columns))
    refuse(*run(subject, data="text.txt"), says=("text.txt is plain text", *columns))
    refuse(*run(subject, data="self"), says=("--data self", *columns))
    refuse(*run(subject, data="one.jsonl"), says=("one.jsonl", *columns))
    refuse(*run(subject, "--held-out", "text.txt"), says=("text.txt is plain text",))
    refuse(*run(subject, "--held-out", "self"), says=("'self' is no text", "Expected text."))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--source-column", "body"), ("no column 'body'",)),
        (("--column", "source"), ("--column is for running text", "--source-column")),
        (("--samples", "x.jsonl"), ("--samples is for running text",)),
        (("--source-lang", "en"), ("knows no languages", "'en'")),
        (("--target-lang", "de"), ("knows no languages", "'de'")),
        (("--context", "1"), ("--context 1",)),
        (("--target-context", "1"), ("--target-context 1",)),
    ],
)
def test_options_that_do_not_fit(
    more: tuple[str, ...], says: tuple[str, ...], subject: tuple[Path, Path], refuse: Refuse
) -> None:
    refuse(*run(subject, *more), says=says)


def test_too_few_pairs_to_measure_on(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "few.jsonl").write_text(json.dumps({"source": "A", "target": "B"}) + "\n")
    refuse(*run(subject, data="few.jsonl"), says=("not one pair to measure on", "--held-out"))


def test_a_tokenizer_without_padding(subject: tuple[Path, Path], tmp_path: Path, refuse: Refuse) -> None:
    other = save_pair_subject(tmp_path / "other")
    pairs_tokenizer(pad_token=None).save_pretrained(other[0])
    refuse(*run(other), says=("no token for padding",))


@pytest.mark.parametrize("option", ["--source-column", "--target-column", "--source-prefix", "--source-lang"])
def test_options_of_pairs_with_a_decoder(option: str, tmp_path: Path, refuse: Refuse) -> None:
    refuse(*run(save_subject(tmp_path), option, "x"), says=(f"{option} is for pairs",))


def test_a_model_that_reads_sound(tmp_path: Path, refuse: Refuse, subject: tuple[Path, Path]) -> None:
    model = family("whisper").native()
    model.config.pad_token_id, model.config.decoder_start_token_id = PAD, EOS
    model.save_pretrained(tmp_path / "whisper")
    convert(ConvertOptions(model=str(tmp_path / "whisper"), groups=2, output=tmp_path / "made"))
    refuse(*run((tmp_path / "made", subject[1])), says=("reads input_features", "trains on text"))


def languages() -> NllbTokenizer:
    """transformers' tokenizer of many languages, with one letter."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "A"]
    return NllbTokenizer(vocab={word: number for number, word in enumerate(words)})


def test_a_tokenizer_of_languages_is_told_which() -> None:
    tokenizer = languages()
    set_languages(tokenizer, "deu_Latn", "fra_Latn")
    german, french = tokenizer.convert_tokens_to_ids(["deu_Latn", "fra_Latn"])
    assert tokenizer.unk_token_id not in (german, french)
    assert tokenizer("A")["input_ids"][0] == german
    assert tokenizer(text_target="A")["input_ids"][0] == french


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [(None, None, "--target-lang"), (None, "Elvish", "'Elvish'"), ("Elvish", "fra_Latn", "'Elvish'")],
)
def test_a_language_that_is_missing_or_unknown(source: str | None, target: str | None, says: str) -> None:
    with pytest.raises(TextError, match=says):
        set_languages(languages(), source, target)
