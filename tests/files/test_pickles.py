"""Pickled weights: everything that torch.load reads is converted to the same numbers, as safetensors.

    FORMS          how a checkpoint may be pickled
    test_views*    tensors that share, skip or transpose their storage
    test_damaged*  what is no state dict any more; nothing but a refusal may come out

Pickles that want to execute something are in `tests/verbs/convert/test_bad_input.py`.
"""

import pickle
import random
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from mha2gqa.errors import CheckpointError
from mha2gqa.files.pickles import read_pickle
from mha2gqa.files.pieces import MemoryFile, TensorInfo, path_of

FORMS: dict[str, dict[str, Any]] = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "old protocol": {"pickle_protocol": 3},
    "shards": {"shards": 3},
    "legacy shards": {"shards": 3, "_use_new_zipfile_serialization": False},
}
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def content(info: TensorInfo) -> bytes:
    whole = info.file.content if isinstance(info.file, MemoryFile) else info.file.read_bytes()
    return bytes(whole[info.offset : info.offset + info.size])


def assert_reads(file: Path, *, from_file: bool) -> None:
    """Hold what the reader found against what torch loads."""
    expected = torch.load(file, weights_only=True)
    infos = {info.name: info for info in read_pickle(file)}
    assert infos.keys() == expected.keys()
    for name, tensor in expected.items():
        assert infos[name].shape == tuple(tensor.shape)
        assert path_of(infos[name].file) == file
        assert content(infos[name]) == tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    assert all(isinstance(info.file, Path) == from_file for info in infos.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickled_checkpoint_becomes_safetensors(tiny, pickled, cli, tensors, tmp_path, load, form, dtype):
    cli("convert", tiny("plain", dtype=dtype), "-g", 2, "-o", "expected")
    pickled(tiny(dtype=dtype), **FORMS[form])
    answer = cli("convert", "source", "-g", 2, "-o", "out")
    assert answer.code == 0, answer.err
    ours, expected = tensors(tmp_path / "out"), tensors(tmp_path / "expected")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert not list((tmp_path / "out").glob("*.bin*"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == FORMS[form].get("shards", 1)
    load(tmp_path / "out")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_views_of_shared_storage_are_converted(tiny, pickled, cli, tensors, tmp_path, options):
    """K and V as slices of one tensor, a transposed Q, and two names for one tensor."""
    source = tiny()
    state = tensors(source)
    attention = "model.layers.0.self_attn."
    k, v, q = (f"{attention}{letter}_proj.weight" for letter in "kvq")
    state[k], state[v] = torch.cat([state[k], state[v]]).chunk(2)
    state[q] = state[q].t().contiguous().t()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    pickled(source, state, **options)
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    ours = tensors(tmp_path / "out")
    for name, tensor in torch.load(source / "pytorch_model.bin", weights_only=True).items():
        is_kv = name.endswith(("k_proj.weight", "v_proj.weight"))
        expected = tensor.double().unflatten(0, (2, 2, 16)).mean(dim=1).flatten(0, 1).float() if is_kv else tensor
        assert torch.equal(ours[name], expected), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("legacy", [False, True])
def test_dtypes_and_shapes(tmp_path, dtype, legacy):
    state = {str(shape): torch.randn(shape).mul(9).to(dtype) for shape in [(), (0,), (3,), (2, 3), (1, 2, 3)]}
    torch.save(state, tmp_path / "model.bin", _use_new_zipfile_serialization=not legacy)
    assert_reads(tmp_path / "model.bin", from_file=not legacy)


def test_a_slice_stays_a_byte_range(tmp_path):
    base = torch.randn(8, 8)
    torch.save({"base": base, "rows": base[2:4], "row": base[5], "parameter": torch.nn.Parameter(base)}, tmp_path / "m")
    assert_reads(tmp_path / "m", from_file=True)


@pytest.mark.parametrize("view", [lambda base: base.t(), lambda base: base[:, 1:3], lambda base: base[0].expand(4, 8)])
def test_a_view_with_strides_is_held_in_memory(tmp_path, view):
    base = torch.randn(8, 8)
    torch.save({"base": base, "view": view(base)}, tmp_path / "model.bin")
    assert_reads(tmp_path / "model.bin", from_file=False)


def test_a_state_dict_with_metadata(tmp_path):
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "model.bin")
    assert isinstance(torch.load(tmp_path / "model.bin", weights_only=True), OrderedDict)
    assert_reads(tmp_path / "model.bin", from_file=True)


def rewrite(file: Path, change=lambda data: data, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip archive anew, with another `data.pkl` or with compression."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_a_compressed_archive(tmp_path):
    torch.save({"a": torch.zeros(64, 64), "b": torch.randn(9)}, tmp_path / "model.bin")
    rewrite(tmp_path / "model.bin", compression=zipfile.ZIP_DEFLATED)
    assert_reads(tmp_path / "model.bin", from_file=False)


def test_a_tensor_beyond_its_storage(tmp_path):
    file = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(2, 9), "b": torch.ones(64, 9)}, file)
    rewrite(file, lambda data: data.replace(b"K\x02K\x09\x86", b"K\x20K\x09\x86"))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_pickle(file)


@pytest.mark.parametrize(
    "state",
    [{"a": {"b": torch.zeros(1)}}, {"model": torch.zeros(1), "epoch": 3}, [], torch.zeros(1), None, {"a": None}],
    ids=repr,
)
def test_what_is_no_state_dict(tmp_path, state):
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="is not a state dict") as caught:
        read_pickle(tmp_path / "model.bin")
    assert "Unwrap it" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes(tmp_path, dtype):
    torch.save({"a": torch.zeros(4, dtype=dtype)}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=f"Tensor 'a' of .* has dtype {dtype}"):
        read_pickle(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", b"PK\x03\x04", pickle.dumps({}, 2)],
    ids=repr,
)
def test_damaged_from_the_start(tmp_path, data):
    (tmp_path / "model.bin").write_bytes(data)
    assert_refused(tmp_path / "model.bin")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_somewhere(tmp_path, seed, legacy):
    """Bytes that changed or are missing: a refusal, or tensors, but never another exception."""
    file, rng = tmp_path / "model.bin", random.Random(seed)
    base = torch.randn(8, 8)
    torch.save({"a": base, "b": base[2:], "c": torch.tensor(True)}, file, _use_new_zipfile_serialization=not legacy)
    whole = file.read_bytes()
    for round_ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(whole), 700))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.randrange(len(damaged)) if round_ % 3 == 0 else None])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                infos = read_pickle(file)
            except CheckpointError as error:
                assert "\n" not in str(error)
                continue
        assert all(info.offset + info.size <= len(damaged) for info in infos)


def assert_refused(file: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_pickle(file)
    assert str(file) in str(caught.value)
    assert caught.value.remedy
