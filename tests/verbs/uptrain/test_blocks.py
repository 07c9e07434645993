"""Packing keeps documents apart: positions, labels, and what transformers' attention makes of them."""

import json
from pathlib import Path

import pytest
import torch

from mha2gqa.model.load import load_model
from mha2gqa.texts.chats import Encoded
from mha2gqa.verbs.uptrain.blocks import (
    COLUMNS,
    BlockFile,
    Packer,
    collate,
    cut_if_few,
    is_held_out,
    keeps_documents_apart,
    key_of,
    read_blocks,
    shuffled,
)
from tests.families.tiny import save_tiny, tiny_config, tiny_model

BOS = 99


def _packed(packer: Packer, *documents: list[int]) -> list[tuple[list[int], list[int]]]:
    rows = [row for document in documents for row in packer.add(document)]
    return [(row["input_ids"], row["position_ids"]) for row in rows]


def test_documents_are_packed_with_positions_of_their_own() -> None:
    packer = Packer(context=6, bos=BOS, reopens=False, mixes=True)
    assert _packed(packer, [1, 2], [3, 4, 5, 6, 7], [8, 9]) == [
        ([BOS, 1, 2, BOS, 3, 4], [0, 1, 2, 0, 1, 2]),
        ([5, 6, 7, BOS, 8, 9], [0, 1, 2, 0, 1, 2]),
    ]


def test_a_tokenizer_that_opens_texts_opens_every_part() -> None:
    packer = Packer(context=4, bos=BOS, reopens=True, mixes=True)
    rows = _packed(packer, [1, 2, 3, 4, 5, 6, 7])
    assert [ids for ids, _ in rows] == [[BOS, 1, 2, 3], [BOS, 4, 5, 6]]


def test_a_document_that_begins_with_bos_gets_no_second() -> None:
    packer = Packer(context=3, bos=BOS, reopens=False, mixes=True)
    assert _packed(packer, [BOS, 1, 2]) == [([BOS, 1, 2], [0, 1, 2])]


def test_of_conversations_the_answers_are_learned_and_blocks_without_are_left_out() -> None:
    packer = Packer(context=4, bos=BOS, reopens=False, mixes=True, learn_from="answers")
    chat = Encoded([1, 2, 3, 4, 5, 6], [False, False, False, False, False, True], is_whole=True)
    rows = [row for document in (chat, chat, [7, 8]) for row in packer.add(document)]
    assert [(row["input_ids"], row["learned"]) for row in rows] == [
        ([5, 6, 1, 2], [0, 1, 0, 0]),
        ([3, 4, 5, 6], [0, 0, 0, 1]),
    ]
    completion = chat._replace(is_completion=True)
    for learn_from, learned in ((None, [0, 1]), ("all", [1, 1])):
        packer = Packer(context=2, bos=None, reopens=False, mixes=True, learn_from=learn_from)
        assert list(packer.add(completion))[-1]["learned"] == learned


def test_without_mixing_a_block_holds_one_document_and_padding() -> None:
    packer = Packer(context=4, bos=None, reopens=False, mixes=False)
    assert _packed(packer, [1, 2, 3, 4, 5, 6], [7]) == [
        ([1, 2, 3, 4], [0, 1, 2, 3]),
        ([5, 6, 0, 0], [0, 1, -1, -1]),
    ]


def test_first_tokens_and_padding_are_not_predicted(tmp_path: Path) -> None:
    file = BlockFile(tmp_path / "blocks.arrow", COLUMNS)
    file.add({"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 0, 1], "learned": [1, 1, 1, 1]})
    file.add({"input_ids": [5, 6, 0, 0], "position_ids": [0, 1, -1, -1], "learned": [1, 1, 0, 0]})
    file.finish()
    blocks = read_blocks(tmp_path / "blocks.arrow")
    batch = collate([blocks[0], blocks[1]], mixes=True)
    assert batch["labels"].tolist() == [[-100, 6, -100, 8], [-100, 6, -100, -100]]
    assert batch["position_ids"].tolist()[0] == [0, 1, 0, 1]
    assert "position_ids" not in collate([blocks[0]], mixes=False)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "phi3", "olmoe", "gpt_bigcode"])
def test_attention_does_not_cross_documents(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type))
    assert keeps_documents_apart(model)
    ids = torch.randint(3, 96, (1, 20), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    alone = model(input_ids=ids[:, 8:], use_cache=False).logits
    torch.testing.assert_close(packed[:, 8:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["falcon_h1", "jamba"])
def test_a_class_that_mixes_documents_is_found_out(model_type: str) -> None:
    assert not keeps_documents_apart(tiny_model(tiny_config(model_type)))


def test_shuffling_keeps_every_document_and_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"document {number}" for number in range(50)]
    monkeypatch.setattr("mha2gqa.verbs.uptrain.blocks._BUFFER", 200)
    one, same, other = (list(shuffled(documents, seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(one) == sorted(other) == sorted(documents)


def test_few_documents_are_cut_at_line_ends_and_nothing_is_lost() -> None:
    text = "".join(f"line {number} of the text\n" for number in range(1000))
    pieces = list(cut_if_few([text]))
    assert "".join(pieces) == text
    assert len(pieces) > 50
    assert all(piece.endswith("\n") for piece in pieces)
    many = [str(number) for number in range(150)]
    assert list(cut_if_few(many)) == many


def test_one_huge_line_is_cut_anywhere() -> None:
    pieces = list(cut_if_few(["x" * 10_000]))
    assert "".join(pieces) == "x" * 10_000
    assert len(pieces) == 100


def test_a_twentieth_is_kept_aside_copies_with_it() -> None:
    keys = [key_of(json.dumps(number)) for number in range(4000)]
    assert 150 < sum(map(is_held_out, keys)) < 250
    assert key_of("same") == key_of("same")


def test_a_loaded_checkpoint_is_told_apart_too(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model", dtype=torch.bfloat16)
    assert keeps_documents_apart(load_model(tmp_path / "model", dtype="float32", device="cpu"))
