"""Attention layers and embeddings of a checkpoint, found under whatever names its file has them."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mha2gqa.model.layers import LayerFiles
from mha2gqa.model.original import Original


def test_a_tied_embedding_is_found_under_the_name_of_the_output(tiny: Callable[..., Path], tmp_path: Path) -> None:
    directory = tiny(tie_word_embeddings=True)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors.pop("model.embed_tokens.weight")
    for content in ({"model.embed_tokens.weight": embedding}, {"lm_head.weight": embedding}):
        save_file(tensors | content, file, {"format": "pt"})
        found = LayerFiles(Original.at(directory), tmp_path).read_embedding()
        assert found is not None
        assert torch.equal(found, embedding)


def test_the_output_is_not_taken_for_an_embedding_that_is_missing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    directory = tiny(tie_word_embeddings=False)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, file, {"format": "pt"})
    assert LayerFiles(Original.at(directory), tmp_path).read_embedding() is None
