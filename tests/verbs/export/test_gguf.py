"""GGUF files say what the checkpoint is, and what llama.cpp does not know is refused without a trace."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from mha2gqa import ConvertOptions, convert
from mha2gqa.verbs.export.converter import _BY_EXPRESSION, pre_tokenizer, without_code
from tests.conftest import Run
from tests.forks import forked_converter
from tests.verbs.export.subjects import VOCABULARY, save_byte_tokenizer, save_readable

Cli = Callable[..., Run]
Tree = Callable[[Path], dict[str, bytes | None]]


@pytest.fixture
def _forked() -> Iterator[None]:
    with forked_converter():
        yield


def says(reader: GGUFReader, name: str) -> object:
    architecture = reader.get_field("general.architecture").contents()
    field = reader.get_field(f"{architecture}.{name}")
    return None if field is None else field.contents()


def test_a_file_holds_the_heads_that_the_checkpoint_has(tmp_path: Path, cli: Cli) -> None:
    directory = save_readable(tmp_path)
    # Of the converter's own name, in the folder that the command runs in.
    (tmp_path / "conversion.py").write_text("raise SystemExit('the code of the folder was run')\n")
    report = json.loads(cli("export", directory, "--gguf", "f16", "--json").out)
    path = tmp_path / "llama-2-f16.gguf"
    assert (report["gguf"], report["size"]) == (str(path), path.stat().st_size)
    reader = GGUFReader(path)
    shapes = {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}
    assert says(reader, "attention.head_count_kv") == 2
    assert shapes["blk.1.attn_k.weight"] == (64, 32)
    assert shapes["token_embd.weight"] == (64, VOCABULARY)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F16", "F32"}
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"


@pytest.mark.usefixtures("_forked")
def test_a_model_written_as_phi_is_not_taken_for_phi_2(tmp_path: Path, cli: Cli) -> None:
    theta = {"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    directory = save_readable(tmp_path, "gpt_neox", rope_parameters=theta)
    assert cli("export", directory, "--gguf", "f32").code == 0
    reader = GGUFReader(tmp_path / "gpt_neox-2-f32.gguf")
    assert says(reader, "attention.head_count_kv") == 2
    assert (
        says(reader, "feed_forward_length") == json.loads((directory / "config.json").read_text())["intermediate_size"]
    )
    assert says(reader, "rope.freq_base") == 5000.0


@pytest.mark.usefixtures("_forked")
def test_latents_are_written_with_a_latent_of_the_queries_that_changes_nothing(tmp_path: Path, cli: Cli) -> None:
    source, output = save_readable(tmp_path).with_name("llama"), tmp_path / "latent"
    asked = {"latent": 24, "rope_width": 8, "data": ("self",), "tokens": 512}
    convert(ConvertOptions(model=str(source), output=output, rope_frequencies="twice:2", **asked))
    assert cli("export", output, "--gguf", "f16").code == 0
    reader = GGUFReader(tmp_path / "latent-f16.gguf")
    assert (says(reader, "attention.key_length"), says(reader, "attention.head_count_kv")) == (32, 1)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    down, gain = (tensors[f"blk.0.attn_q_a{name}.weight"] for name in ("", "_norm"))
    width = json.loads((source / "config.json").read_text())["hidden_size"]
    # What the norm is given is as nothing beside its eps of 1e-6, and all that it does is to divide by 1e-3.
    assert (gain * 1e3 * down == pytest.approx(np.eye(width), rel=1e-6)) and np.abs(down).max() < 1e-5
    assert tensors["blk.0.attn_kv_a_mqa.weight"].dtype == np.float32


@pytest.mark.usefixtures("_forked")
def test_latents_of_free_speeds_are_refused(tmp_path: Path, cli: Cli) -> None:
    source, output = save_readable(tmp_path).with_name("llama"), tmp_path / "latent"
    asked = {"latent": 24, "rope_width": 4, "data": ("self",), "tokens": 512}
    convert(ConvertOptions(model=str(source), output=output, rope_frequencies="planes:0,0", **asked))
    run = cli("export", output, "--gguf", "f16")
    assert (run.code, "longrope" in run.err) == (1, True)


@pytest.mark.usefixtures("_forked")
def test_a_file_that_is_there_is_replaced_by_force_alone(tmp_path: Path, cli: Cli, tree: Tree) -> None:
    directory = save_readable(tmp_path)
    path = tmp_path / "llama-2-bf16.gguf"
    path.write_text("mine")
    before = tree(tmp_path)
    run = cli("export", directory, "--gguf", "bf16")
    assert (run.code, "Replace it with --force" in run.err) == (1, True)
    assert tree(tmp_path) == before
    assert cli("export", directory, "--gguf", "bf16", "--force").code == 0
    assert tree(tmp_path).keys() == before.keys()
    assert tree(directory) == {name.removeprefix("llama-2/"): one for name, one in before.items() if "llama-2/" in name}
    assert GGUFReader(path).tensors
    assert cli("verify", directory, "--level", "file").code == 0, "what was exported is the same result"


@pytest.mark.parametrize("place", ["llama-2-f16.gguf", ".llama-2-f16.gguf.partial"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_in_the_way_is_neither_followed_nor_taken_away(
    tmp_path: Path, refuse: Callable[..., None], tree: Tree, place: str, kind: str
) -> None:
    directory = save_readable(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/precious").write_text("kept")
    in_the_way = tmp_path / place
    if kind == "link":
        in_the_way.symlink_to("theirs/precious" if place.startswith("llama") else "theirs")
    else:
        shutil.copytree(tmp_path / "theirs", in_the_way)
    before = tree(tmp_path)
    refuse("export", directory, "--gguf", "f16", "--force", says=(place,))
    assert tree(tmp_path) == before


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    (tmp_path / "tokenization_own.py").write_text("raise LookupError('the code of the checkpoint was run')\n")
    settings = tmp_path / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": auto_map}))

    class Loader(AutoTokenizer):
        pass

    with pytest.raises(LookupError):
        Loader.from_pretrained(tmp_path, trust_remote_code=True)
    without_code(Loader)
    assert len(Loader.from_pretrained(tmp_path, trust_remote_code=True)) == VOCABULARY


@pytest.mark.parametrize("expression", _BY_EXPRESSION)
def test_expressions_of_known_tokenizers_have_their_names(tmp_path: Path, expression: str) -> None:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    merges = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    save_byte_tokenizer(tmp_path, pre_tokenizers.Sequence([split, merges]))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert pre_tokenizer(content) == _BY_EXPRESSION[expression]
    content["normalizer"] = {"type": "NFC"}
    assert pre_tokenizer(content) is None
