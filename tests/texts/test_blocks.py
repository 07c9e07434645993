"""Blocks hold the tokens of the documents in order, and what the model writes depends on the seed alone."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mha2gqa.errors import TextError
from mha2gqa.files.source import find_source
from mha2gqa.model.load import load_tokenizer
from mha2gqa.reference.corpus import calibration_files, held_out_files
from mha2gqa.texts.blocks import pack, random_blocks
from mha2gqa.texts.find import find_blocks
from mha2gqa.texts.written import sample_text
from tests.families.tiny import tiny_config, tiny_model

BOS = 0


def letters(*, has_bos: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """a is token 1, b is token 2, ..."""
    vocabulary = {"<s>": BOS} | {chr(96 + number): number for number in range(1, 27)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"bos_token": "<s>"} if has_bos else {}))


def test_bos_stands_before_each_document_and_the_rest_is_dropped() -> None:
    blocks = pack(["abc", "de", "fgh"], letters(), context=4, tokens=100)
    assert blocks.tolist() == [[BOS, 1, 2, 3], [BOS, 4, 5, BOS]]
    assert blocks.dtype == torch.int64


@pytest.mark.parametrize("adds_bos", [False, True])
def test_random_tokens_are_all_that_are_known_and_not_special(adds_bos: bool) -> None:
    tokenizer = letters(adds_bos=adds_bos)
    blocks_NT = random_blocks(tokenizer, vocabulary=12, context=10, tokens=1009, seed=0)
    assert blocks_NT.shape == (100, 10)
    assert set(blocks_NT[:, 1:].flatten().tolist()) == set(range(1, 12))
    assert (set(blocks_NT[:, 0].tolist()) == {BOS}) == adds_bos
    assert torch.equal(blocks_NT, random_blocks(tokenizer, vocabulary=12, context=10, tokens=1009, seed=0))


def test_without_bos_documents_follow_one_another() -> None:
    assert pack(["abc", "de"], letters(has_bos=False), context=2, tokens=100).tolist() == [[1, 2], [3, 4]]


def test_a_tokenizer_that_adds_bos_gets_it_before_each_block() -> None:
    blocks = pack(["abcd", "ef"], letters(adds_bos=True), context=4, tokens=100)
    assert blocks.tolist() == [[BOS, 1, 2, 3], [BOS, 4, 5, 6]]


def test_reading_stops_at_the_tokens_that_were_asked_for() -> None:
    def documents():
        yield "abcdefgh"
        raise AssertionError("more was read than is needed")

    assert pack(documents(), letters(), context=4, tokens=9).tolist() == [[BOS, 1, 2, 3], [4, 5, 6, 7]]


def test_too_short_a_text_is_refused_with_its_length() -> None:
    with pytest.raises(TextError, match=r"4 tokens long\. Expected at least 8: 1 block of 8"):
        pack(["abc"], letters(), context=8, tokens=100)
    with pytest.raises(TextError, match="2 blocks of 4"):
        pack(["abcdef"], letters(), context=4, tokens=4, least=2)


def test_sampled_text_is_the_seeds_and_the_models() -> None:
    model = tiny_model(tiny_config("llama"))
    state = torch.random.get_rng_state()
    sample = partial(sample_text, model, letters(), tokens=70, context=16)
    first, again, other = sample(seed=1), sample(seed=1), sample(seed=2)
    assert first.shape == (4, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first[:, 0] == BOS).all()
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers are not used up"


def test_sampled_text_follows_the_models_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mha2gqa.texts.written._BATCH", 1000)
    model = tiny_model(tiny_config("llama"))
    blocks = sample_text(model, letters(), tokens=8000, context=2, seed=0)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([[BOS]])).logits[0, -1].double().softmax(-1)
    seen = torch.bincount(blocks[:, 1], minlength=len(expected)) / len(blocks)
    # 4000 draws: a share p scatters by sqrt(p (1 - p) / 4000), at most 0.008.
    assert (seen - expected).abs().max() < 0.03


def test_a_model_that_cannot_write_is_refused() -> None:
    with pytest.raises(TextError, match="'eurobert' model cannot write"):
        sample_text(tiny_model(tiny_config("eurobert")), letters(), tokens=64, context=16, seed=0)


def test_the_reference_has_text_of_its_own_for_each_purpose() -> None:
    source = find_source(None)
    tokenizer = load_tokenizer(source.directory)
    find = partial(find_blocks, (), source=source, tokenizer=tokenizer, model=pytest.fail, context=64, tokens=256)
    for purpose, files in (("evaluation", held_out_files()), ("calibration", calibration_files())):
        blocks = find(purpose=purpose)
        assert blocks.tokens_NT.shape == (4, 64)
        assert files[0].read_text().startswith(tokenizer.decode(blocks.tokens_NT[0, 1:]))
        assert "reference" in blocks.description
        assert not blocks.sampled


def test_text_is_the_users_or_the_models(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh")
    model = tiny_model(tiny_config("llama"))
    find = partial(
        find_blocks,
        source=find_source(str(tmp_path)),
        tokenizer=letters(),
        model=lambda: model,
        context=8,
        tokens=16,
        purpose="evaluation",
    )
    given = find((str(tmp_path / "a.txt"),))
    assert given.tokens_NT.tolist() == [[BOS, 1, 2, 3, 4, 5, 6, 7]]
    assert "a.txt" in given.description
    written, asked = find(()), find(("self",))
    assert torch.equal(written.tokens_NT, asked.tokens_NT)
    assert written.sampled
    assert "sampled from the original itself" in written.description
    with pytest.raises(TextError, match="beside other text"):
        find(("self", "a.txt"))


def test_files_that_a_text_does_not_come_to_are_named(tmp_path: Path) -> None:
    first, second = (str(tmp_path / name) for name in ("a.txt", "b.txt"))
    Path(first).write_text("abcdefgh" * 4)
    Path(second).write_text("xyz" * 10)
    find = partial(
        find_blocks,
        source=find_source(str(tmp_path)),
        tokenizer=letters(),
        model=pytest.fail,
        context=8,
        purpose="calibration",
    )
    enough = find((first, second), tokens=16)
    assert (
        enough.description
        == f"text from {first}, and none from {second} (--data {first}:1 --data {second}:1 mixes them)"
    )
    assert enough.tokens_NT.max() <= 8
    for data, tokens in (((first, second), 48), ((f"{first}:1", f"{second}:1"), 48), ((first,), 16)):
        assert find(data, tokens=tokens).description == f"text from {', '.join(data)}"
    assert find((f"{first}:1", f"{second}:1"), tokens=16).description.endswith("(more --tokens reach them)")
