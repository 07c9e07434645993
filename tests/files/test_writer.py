"""What is written: the numbers of each method and dtype, files and shards, checksums, and every way of moving bytes.

Legend: K KV heads of the source, G of the result, N numbers of a head.
"""

import errno
import fcntl
import json
import math
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mha2gqa.errors import CheckpointError
from mha2gqa.files import pool, streams, writer
from mha2gqa.files.pieces import Span
from mha2gqa.files.streams import Sources
from tests.told import Told

KV = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias")
BIASED = {"attention_bias": True}
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "vocab_size": 4096}
PRECISION = {torch.float64: (53, -1074), torch.float32: (24, -149), torch.bfloat16: (8, -133), torch.float16: (11, -24)}
"""Bits of the significand, and exponent of the smallest number."""


def header(file: Path) -> tuple[dict, int]:
    """The header of a safetensors file, and where the data begins."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), start


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def division(directory: Path) -> dict[str, set[str]]:
    return {file.name: set(load_file(file)) for file in directory.glob("*.safetensors")}


def groups_of(tensor: torch.Tensor, heads: int, groups: int) -> torch.Tensor:
    """`[G, K/G, N]`: the heads of each group, in fp64."""
    return tensor.double().reshape(groups, heads // groups, -1)


def rounded(numbers: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Round fp64 to the nearest number of a dtype, ties to even; torch would round bf16 and fp16 twice."""
    bits, least = PRECISION[dtype]
    unit = np.ldexp(1.0, np.maximum(np.frexp(numbers)[1] - bits, least))
    return np.rint(numbers / unit) * unit


def exact_mean(heads_GRN: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    count = heads_GRN.shape[1]
    means = [[math.fsum(column) / count for column in zip(*group, strict=True)] for group in heads_GRN.tolist()]
    return rounded(np.array(means), dtype)


# Numbers


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (4, 1), (6, 2), (6, 1)])
def test_the_mean_is_correctly_rounded(tiny, cli, tensors, tmp_path, dtype, heads, groups):
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": 16 * heads, "head_dim": 16}
    source = tiny(dtype=dtype, **sizes, **BIASED)
    assert cli("convert", source, "-g", groups, "-o", "out").code == 0
    before, after = tensors(source), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == dtype
        if not name.endswith(KV):
            assert torch.equal(tensor, before[name])
            continue
        found = tensor.double().reshape(groups, -1).numpy()
        expected = exact_mean(groups_of(before[name], heads, groups), dtype)
        if dtype == torch.float64 and heads // groups > 2:  # no wider dtype to add in: one rounding for each addition
            scale = groups_of(before[name], heads, groups).abs().sum(dim=1).numpy()
            assert (np.abs(found - expected) <= scale * 2.0**-53).all()
        else:
            assert (found == expected).all()


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_first_takes_the_first_head(tiny, cli, tensors, tmp_path, dtype):
    source = tiny(dtype=dtype, **BIASED)
    assert cli("convert", source, "-g", 2, "-o", "out", "--method", "first").code == 0
    before, after = tensors(source), tensors(tmp_path / "out")
    for name in (name for name in after if name.endswith(KV)):
        assert raw(after[name]) == raw(before[name].unflatten(0, (2, 2, 16))[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_heads_stay_what_they_are(tiny, cli, tmp_path, tensors, dtype):
    """Expanding, and converting back, gives the bytes of the source."""
    source = tiny(dtype=dtype, num_key_value_heads=2, **BIASED)
    assert cli("expand", source, "-o", "expanded").code == 0
    assert cli("convert", "expanded", "-g", 2, "-o", "out").code == 0
    before, after = tensors(source), tensors(tmp_path / "out")
    assert {name: raw(tensor) for name, tensor in after.items()} == {name: raw(before[name]) for name in after}


def test_random_draws_at_the_scale_of_the_heads(tiny, cli, tensors, tmp_path):
    source = tiny(**WIDE)
    runs = {"out": 7, "again": 7, "other": 8}
    for output, seed in runs.items():
        assert cli("convert", source, "-g", 2, "-o", output, "--method", "random", "--seed", seed).code == 0
    before, *after = (tensors(tmp_path / name) for name in ("source", *runs))
    names = [name for name in before if name.endswith(KV)]
    for name in names:
        out, again, other = (run[name] for run in after)
        assert torch.equal(out, again)
        assert torch.isclose(out, other).float().mean() < 0.01
        for drawn, replaced in zip(groups_of(out, 2, 2), groups_of(before[name], 4, 2), strict=True):
            scale = replaced.std(correction=0).item()
            assert drawn.std().item() == pytest.approx(scale, rel=0.05)
            assert drawn.mean().item() == pytest.approx(replaced.mean().item(), abs=0.05 * scale)
    heads = torch.stack([head for name in names for head in groups_of(after[0][name], 2, 2).flatten(1)])
    assert (torch.corrcoef(heads) - torch.eye(len(heads))).abs().max() < 0.05


def test_random_does_not_depend_on_the_files(tiny, cli, tensors, tmp_path):
    tiny("one")
    tiny("three", max_shard_size="150KB")
    for source in ("one", "three"):
        assert cli("convert", source, "-g", 1, "-o", f"{source}-out", "--method", "random").code == 0
    one, three = (tensors(tmp_path / f"{source}-out") for source in ("one", "three"))
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_as_many_groups_as_heads_changes_no_byte(tiny, cli, tensors, tmp_path, dtype):
    source = tiny(dtype=dtype)
    assert cli("convert", source, "-g", 4, "-o", "out").code == 0
    before, after = tensors(source), tensors(tmp_path / "out")
    assert {name: raw(tensor) for name, tensor in after.items()} == {name: raw(before[name]) for name in before}
    assert (tmp_path / "out/config.json").read_bytes() == (source / "config.json").read_bytes()


# Files


@pytest.mark.parametrize(("size", "least"), [("100KB", 2), ("64KiB", 3), ("1KB", 15), ("0.1 MB", 2), ("1GB", 1)])
def test_shards(tiny, cli, tensors, tmp_path, load, size, least):
    assert cli("convert", tiny(), "-g", 2, "-o", "whole").code == 0
    assert cli("convert", "source", "-g", 2, "-o", "out", "--max-shard-size", size).code == 0
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert {name: raw(tensor) for name, tensor in parts.items()} == {name: raw(whole[name]) for name in whole}
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) >= least
    load(tmp_path / "out")
    if least == 1:
        assert [file.name for file in files] == ["model.safetensors"]
        return
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in whole.values())
    limit = {"100KB": 100_000, "64KiB": 65536, "1KB": 1000, "0.1 MB": 100_000}[size]
    for file in files:
        sizes = [tensor.nbytes for tensor in load_file(file).values()]
        assert sum(sizes) <= limit or len(sizes) == 1


@pytest.mark.parametrize("max_shard_size", ["1GB", "150KB", "1KB"])
def test_by_default_divided_as_the_source_is(tiny, cli, tmp_path, load, max_shard_size):
    source = tiny(max_shard_size=max_shard_size)
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    assert division(tmp_path / "out") == division(source)
    load(tmp_path / "out")


def test_mixed_dtypes_stay_aligned(tiny, cli, tmp_path, load):
    """Norms in fp32 beside bf16, an odd number of bytes in front of both."""
    source = tiny(dtype=torch.bfloat16)
    content = load_file(source / "model.safetensors")
    wide = {name: tensor.float() for name, tensor in content.items() if "norm" in name}
    save_file(content | wide, source / "model.safetensors", {"format": "pt"})
    assert cli("convert", source, "-g", 2, "-o", "loads").code == 0
    load(tmp_path / "loads")
    odd = {"a.mask": torch.ones(3, dtype=torch.bool), "z.count": torch.ones(5, dtype=torch.int64)}
    odd |= {"a.scale": torch.ones(3).half(), "a.wide": torch.ones(1, dtype=torch.float64)}
    save_file(content | wide | odd, source / "model.safetensors", {"format": "pt"})
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    entries, start = header(tmp_path / "out/model.safetensors")
    entries.pop("__metadata__")
    written = load_file(tmp_path / "out/model.safetensors")
    assert start % 8 == 0
    for name, entry in entries.items():
        assert entry["data_offsets"][0] % written[name].element_size() == 0, name
    assert all(raw(written[name]) == raw(tensor) for name, tensor in (wide | odd).items())


def test_metadata_is_kept(tiny, cli, tmp_path):
    source = tiny()
    save_file(load_file(source / "model.safetensors"), source / "model.safetensors", {"origin": "run 7 \u00e4"})
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"origin": "run 7 \u00e4", "format": "pt"}


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("method", ["mean", "random"])
def test_checksums(tiny, cli, tensors, tmp_path, max_shard_size, method):
    arguments = ("-g", 2, "-o", "out", "--max-shard-size", max_shard_size, "--method", method)
    assert cli("convert", tiny(), *arguments).code == 0
    record = json.loads((tmp_path / "out/mha2gqa.json").read_text())["tensors"]
    written = tensors(tmp_path / "out")
    assert {name: entry["xxh3_128"] for name, entry in record.items()} == {
        name: xxhash.xxh3_128_hexdigest(raw(tensor)) for name, tensor in written.items()
    }
    assert {name for name, entry in record.items() if entry["changed"]} == {n for n in written if n.endswith(KV)}


def test_progress_counts_every_byte_once(tiny, tmp_path):
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert

    told = Told()
    report = convert(ConvertOptions(model=str(tiny()), groups=2, output=tmp_path / "out"), told)
    assert told.done == {"writing": report.bytes_written}
    assert told.totals == {"writing": {report.bytes_written}}


# Ways of moving bytes


class Reflink:
    """FICLONERANGE of a file system that shares extents, played by copying."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusal: int = 0) -> None:
        self.cloned, self.refusal, self._ioctl = 0, refusal, fcntl.ioctl
        self._lock = threading.Lock()
        monkeypatch.setattr(fcntl, "ioctl", self)

    def __call__(self, target: int, request: int, argument: bytes = b"", *others: object) -> object:
        if request != 0x4020940D:
            return self._ioctl(target, request, argument, *others)
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        source, start, length, offset = struct.unpack("qQQQ", argument)
        assert (start % 4096, length % 4096, offset % 4096) == (0, 0, 0)
        assert length > 0
        assert start + length <= os.fstat(source).st_size
        assert os.pwrite(target, os.pread(source, length, start), offset) == length
        with self._lock:
            self.cloned += length
        return 0


class Advice:
    """Notes the ranges that are dropped from the page cache, by the file's directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dropped: dict[str, set[tuple[int, int]]] = {}
        self._advise = os.posix_fadvise
        monkeypatch.setattr(os, "posix_fadvise", self)

    def __call__(self, descriptor: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        directory = Path(f"/proc/self/fd/{descriptor}").readlink().parent.name
        self.dropped.setdefault(directory, set()).add((offset, size))
        self._advise(descriptor, offset, size, advice)


def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers, windows, slices and tasks so small that a tiny checkpoint needs many of each."""
    monkeypatch.setattr(streams, "_BUFFER", 1 << 14)
    monkeypatch.setattr(streams, "_WINDOW", 1 << 16)
    monkeypatch.setattr(pool, "_SLICE", 1 << 12)
    monkeypatch.setattr(writer, "_RUN", 1 << 18)


def weights(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("*.safetensors")}


@pytest.mark.parametrize("steps", ["large", "small"])
@pytest.mark.parametrize("reflink", ["none", "refused", "used"])
@pytest.mark.parametrize("drop_behind", [False, True])
@pytest.mark.parametrize("max_shard_size", ["1GB", "2MB"])
def test_every_way_writes_the_same(tiny, cli, tmp_path, tree, monkeypatch, steps, reflink, drop_behind, max_shard_size):
    source = tiny(dtype=torch.bfloat16, max_shard_size=max_shard_size, **WIDE)
    assert cli("convert", source, "-g", 2, "-o", "plain").code == 0
    before = weights(source)
    if steps == "small":
        small_steps(monkeypatch)
    monkeypatch.setattr(writer, "should_drop_behind", lambda size: drop_behind)
    clone = Reflink(monkeypatch, errno.EOPNOTSUPP if reflink == "refused" else 0) if reflink != "none" else None
    advice = Advice(monkeypatch)
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
    assert weights(source) == before
    assert (set(advice.dropped) == {"source", ".out.partial"}) == drop_behind
    if reflink == "used":
        copied = sum(map(len, before.values()))
        assert 0.8 * copied < clone.cloned < copied
    if drop_behind and steps == "small":
        assert len(advice.dropped["source"]) > 50
        assert len(advice.dropped[".out.partial"]) > 20


def test_drop_behind_is_for_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(streams, "_available_memory", lambda: 1000)
    assert [streams.should_drop_behind(size) for size in (0, 100, 1000, 5000)] == [False, False, True, True]


def test_reads_and_writes_that_come_in_parts(tiny, cli, tmp_path, monkeypatch):
    """A kernel may read or write less than it is asked for."""
    source = tiny()
    assert cli("convert", source, "-g", 2, "-o", "plain").code == 0
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: read(file, [buffers[0][:1001]], offset))
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:777], offset))
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


def test_without_preadv(tiny, cli, tmp_path, monkeypatch):
    source = tiny()
    assert cli("convert", source, "-g", 2, "-o", "plain").code == 0
    monkeypatch.delattr(os, "preadv")
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")


def test_a_source_that_ends_early(tmp_path):
    (file := tmp_path / "file").write_bytes(bytes(10))
    sources, view = Sources(), memoryview(bytearray(8))
    sources.read_into(Span(file, 2, 8), view)
    with pytest.raises(CheckpointError, match="ended at byte 10"):
        sources.read_into(Span(file, 4, 8), view)
    sources.close()


def test_an_error_in_one_thread_stops_the_other(tiny, cli, monkeypatch):
    """Not after gigabytes: the disk is full for both."""
    small_steps(monkeypatch)
    source, failed, after = tiny(**WIDE), threading.Event(), []
    write, first = os.pwrite, threading.Lock()

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if threading.current_thread() is threading.main_thread():
            return write(descriptor, data, offset)
        if first.acquire(blocking=False):
            failed.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        assert failed.wait(10)
        after.append(offset)
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert cli("convert", source, "-g", 2, "-o", "out").code == 1
    assert len(after) < 100
