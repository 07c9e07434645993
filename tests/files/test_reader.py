"""What the reader makes of a directory: tensors as byte ranges, the files to copy, and headers that lie.

Refusals with their whole message are in `tests/verbs/convert/test_bad_input.py`.
"""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mha2gqa.errors import CheckpointError
from mha2gqa.files.reader import has_weights, read_checkpoint, read_safetensors
from tests.conftest import COMPANIONS

LEFT_BEHIND = (
    *("README.md", "mha2gqa.json", ".gitattributes", ".cache/huggingface/x.txt", "training_args.bin"),
    *("optimizer.pt", "scheduler.pth", "tf_model.h5", "flax_model.msgpack", "model.gguf", "onnx/model.onnx"),
    *("consolidated.safetensors", "original/consolidated.00.pth", "tf_model.h5.index.json"),
)


def content(info) -> bytes:
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        return stream.read(info.size)


@pytest.mark.parametrize("max_shard_size", ["1GB", "150KB", "1KB"])
def test_tensors_are_byte_ranges(tiny, tensors, max_shard_size):
    source = tiny(dtype=torch.bfloat16, max_shard_size=max_shard_size)
    infos, expected = read_checkpoint(source).tensors, tensors(source)
    assert {info.name: (info.dtype, info.shape) for info in infos} == {
        name: ("BF16", tuple(tensor.shape)) for name, tensor in expected.items()
    }
    assert all(content(info) == expected[info.name].view(torch.uint8).numpy().tobytes() for info in infos)
    assert infos == tuple(sorted(infos, key=lambda info: (info.file, info.offset)))


def test_metadata(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt", "origin": "run 7"})
    infos, metadata = read_safetensors(tmp_path / "model.safetensors")
    assert metadata == {"format": "pt", "origin": "run 7"}
    assert [info.name for info in infos] == ["a"]


def test_empty_tensors(tmp_path):
    save_file({"a": torch.zeros(0, 4), "b": torch.zeros(2), "c": torch.tensor(1.0)}, tmp_path / "model.safetensors")
    infos, metadata = read_safetensors(tmp_path / "model.safetensors")
    assert {info.name: (info.shape, info.size) for info in infos} == {"a": ((0, 4), 0), "b": ((2,), 8), "c": ((), 4)}
    assert metadata == {}


def test_files_to_copy(tiny):
    source = tiny()
    for name in LEFT_BEHIND:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    companions = {path.as_posix() for path in read_checkpoint(source).companions}
    assert companions == {*COMPANIONS, "generation_config.json"}


def test_safetensors_win_over_pickles(tiny):
    source = tiny()
    (source / "pytorch_model.bin").write_bytes(b"stale")
    assert {info.file.name for info in read_checkpoint(source).tensors} == {"model.safetensors"}


def test_an_index_may_name_the_single_file(tiny):
    source = tiny()
    weight_map = dict.fromkeys(load_file(source / "model.safetensors"), "model.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert {info.name for info in read_checkpoint(source).tensors} == set(weight_map)


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", ""])
def test_has_weights(tmp_path, file):
    if file:
        (tmp_path / file).touch()
    assert has_weights(tmp_path) == bool(file)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_header_is_refused_or_harmless(tmp_path, seed):
    """Flip bits of the header: whatever is not refused stays inside the file, without overlap."""
    file, rng = tmp_path / "model.safetensors", random.Random(seed)
    save_file({"a": torch.ones(4), "b": torch.ones(2, 8), "c": torch.ones(3).half()}, file, {"format": "pt"})
    whole = file.read_bytes()
    for _ in range(250):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(whole) - 86)] ^= 1 << rng.randrange(8)
        assert_refused_or_inside(file, bytes(damaged))


def test_a_file_that_ends_early_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2, 8)}, file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is damaged"):
            read_safetensors(file)


def assert_refused_or_inside(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    try:
        infos, _ = read_safetensors(file)
    except CheckpointError as error:
        assert "is damaged" in str(error)
        return
    end = 8 + int.from_bytes(data[:8], "little")
    for info in infos:
        assert info.offset == end
        end += info.size
    assert end == len(data)


def write_header(source: Path, entries: dict[str, object], more: int = 0) -> None:
    """Write a header by hand, before 64 bytes and what a sparse file has besides."""
    content = json.dumps(entries).encode()
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content + bytes(64))
        file.truncate(file.tell() + more)


@pytest.mark.parametrize(
    ("count", "shape", "says"),
    [
        (160_000, [0], "160,001 tensors"),
        (1_001, [0], "1,001 tensors without a number"),
        (1_100, [3, 0, 9], "1,100 ten"),
    ],
)
def test_more_tensors_than_any_model_has(tiny, count, shape, says):
    source = tiny()
    empty = {"dtype": "F32", "shape": shape, "data_offsets": [64, 64]}
    whole = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    write_header(source, {"a": whole} | {f"e{number}": empty for number in range(count)})
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(source)


def test_a_header_of_gigabytes(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((1 << 31).to_bytes(8, "little"))
        file.truncate(1 << 32)
    with pytest.raises(CheckpointError, match="its header has 2,147,483,648 bytes"):
        read_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["a\x1b[2J", "two\nlines", "\u202eturned", "\x00"])
def test_names_that_steer_a_terminal(tiny, name):
    source = tiny()
    write_header(source, {name: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}})
    with pytest.raises(CheckpointError, match="has the name") as caught:
        read_checkpoint(source)
    assert str(caught.value).isprintable()


def test_metadata_that_is_none(tmp_path):
    write_header(tmp_path, {"__metadata__": None, "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}})
    assert read_safetensors(tmp_path / "model.safetensors")[1] == {}
