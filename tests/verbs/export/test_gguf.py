"""GGUF files say what the checkpoint is, and what llama.cpp does not know is refused without a trace."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader
from tokenizers import Regex, pre_tokenizers

from mha2gqa.verbs.export.converter import _BY_EXPRESSION, pre_tokenizer
from tests.conftest import Run
from tests.verbs.export.subjects import VOCABULARY, save_byte_tokenizer, save_readable

Cli = Callable[..., Run]
Tree = Callable[[Path], dict[str, bytes | None]]


def says(reader: GGUFReader, name: str) -> object:
    architecture = reader.get_field("general.architecture").contents()
    field = reader.get_field(f"{architecture}.{name}")
    return None if field is None else field.contents()


def test_a_file_holds_the_heads_that_the_checkpoint_has(tmp_path: Path, cli: Cli) -> None:
    directory = save_readable(tmp_path)
    report = json.loads(cli("export", directory, "--gguf", "f16", "--json").out)
    path = directory / "llama-2-f16.gguf"
    assert (report["gguf"], report["size"]) == (str(path), path.stat().st_size)
    reader = GGUFReader(path)
    shapes = {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}
    assert says(reader, "attention.head_count_kv") == 2
    assert shapes["blk.1.attn_k.weight"] == (64, 32)
    assert shapes["token_embd.weight"] == (64, VOCABULARY)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F16", "F32"}
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"


def test_a_model_written_as_phi_is_not_taken_for_phi_2(tmp_path: Path, cli: Cli) -> None:
    theta = {"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    directory = save_readable(tmp_path, "gpt_neox", rope_parameters=theta)
    assert cli("export", directory, "--gguf", "f32").code == 0
    reader = GGUFReader(directory / "gpt_neox-2-f32.gguf")
    assert says(reader, "attention.head_count_kv") == 2
    assert (
        says(reader, "feed_forward_length") == json.loads((directory / "config.json").read_text())["intermediate_size"]
    )
    assert says(reader, "rope.freq_base") == 5000.0


def test_a_file_that_is_there_is_replaced_by_force_alone(tmp_path: Path, cli: Cli, tree: Tree) -> None:
    directory = save_readable(tmp_path)
    path = directory / "llama-2-bf16.gguf"
    path.write_text("mine")
    before = tree(directory)
    run = cli("export", directory, "--gguf", "bf16")
    assert (run.code, "Replace it with --force" in run.err) == (1, True)
    assert tree(directory) == before
    assert cli("export", directory, "--gguf", "bf16", "--force").code == 0
    assert tree(directory).keys() == before.keys()
    assert GGUFReader(path).tensors


def test_what_llama_cpp_does_not_know_is_refused_without_a_trace(
    tmp_path: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_readable(tmp_path)
    save_byte_tokenizer(directory, pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]))
    refuse("export", directory, "--gguf", "f16", says=("no name for what its tokenizer does before its merges",))
    config = directory / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "NoSuchForCausalLM"))
    refuse("export", directory, "--gguf", "f16", says=("NoSuchForCausalLM is not supported",))
    monkeypatch.setattr("mha2gqa.verbs.export.gguf.find_spec", lambda name: None)
    refuse(
        "export", directory, "--gguf", "f16", says=("which is not installed. Install it: pip install 'mha2gqa[gguf]'",)
    )


@pytest.mark.parametrize("expression", _BY_EXPRESSION)
def test_expressions_of_known_tokenizers_have_their_names(tmp_path: Path, expression: str) -> None:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    merges = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    save_byte_tokenizer(tmp_path, pre_tokenizers.Sequence([split, merges]))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert pre_tokenizer(content) == _BY_EXPRESSION[expression]
    content["normalizer"] = {"type": "NFC"}
    assert pre_tokenizer(content) is None
