"""Every refusal, at the command line: exit code 1, one message on stderr, nothing written, nothing changed.

    CONFIGS, WEIGHTS       what is wrong with a source; `{source}` in a message is its directory
    groups, outputs, disk  what is wrong with the request or the machine
    usage                  wrong command lines: exit code 2, and what `--config` does

A row is what to do to a checkpoint, and the parts of the message: value, expectation, remedy.
Damage that only the header checks can see is in `checkpoint/test_reader.py` and `test_pickles.py`.
"""

import errno
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mha2gqa.errors import OutputError, SourceError
from mha2gqa.files.source import find_source
from mha2gqa.files.staging import check_output
from mha2gqa.record import carry
from tests.hub_server import HubServer

K = "model.layers.1.self_attn.k_proj.weight"
V = "model.layers.0.self_attn.v_proj.weight"
SHARD, INDEX = "model-00002-of-00003.safetensors", "model.safetensors.index.json"
MLA = "multi-head latent attention (MLA) caches one latent vector"

Damage = Callable[[Path], object]
Tensors = dict[str, torch.Tensor]


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def edit(name: str, **changes: Any) -> Damage:
    """Change keys of a JSON file; None removes one."""

    def damage(source: Path) -> None:
        content = json.loads((source / name).read_text()) | changes
        (source / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def config(**changes: Any) -> Damage:
    return edit("config.json", **changes)


def text(name: str, content: str) -> Damage:
    return lambda source: (source / name).write_text(content)


def index(**changes: str) -> Damage:
    """Say of some tensors (dots are double underscores) that they are in another file."""

    def damage(source: Path) -> None:
        content = json.loads((source / INDEX).read_text())
        content["weight_map"] |= {name.replace("__", "."): file for name, file in changes.items()}
        (source / INDEX).write_text(json.dumps(content))

    return damage


def tensors(change: Callable[[Tensors], object]) -> Damage:
    def damage(source: Path) -> None:
        content = load_file(source / "model.safetensors")
        change(content)
        save_file(content, source / "model.safetensors", {"format": "pt"})

    return damage


def put(name: str, number: float) -> Damage:
    return tensors(lambda content: content[name].view(-1).__setitem__(-1, number))


def retype(dtype: torch.dtype) -> Damage:
    return tensors(lambda content: content.update({K: content[K].to(dtype)}))


def truncate(name: str) -> Damage:
    return lambda source: os.truncate(source / name, (source / name).stat().st_size - 1)


def header(**entries: Any) -> Damage:
    """Write a safetensors file by hand, with 64 bytes of data."""
    content = json.dumps(entries).encode()
    whole = struct.pack("<Q", len(content)) + content + bytes(64)
    return lambda source: (source / "model.safetensors").write_bytes(whole)


def entry(first: int, last: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(last - first) // 4], "data_offsets": [first, last]}


def pickles(content: Callable[[Path], object], **options: Any) -> Damage:
    def damage(source: Path) -> None:
        (source / "model.safetensors").unlink()
        torch.save(content(source), source / "pytorch_model.bin", **options)

    return damage


def evil(source: Path) -> dict[str, Any]:
    return {K: torch.zeros(64, 64), "evil": Evil(source.parent / "executed")}


def plain_pickle(source: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(evil(source)["evil"], protocol=2))


def adapter_alone(source: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (source / file).unlink()
    (source / "adapter_config.json").write_text("{}")
    (source / "adapter_model.safetensors").touch()


def remove(*names: str) -> Damage:
    return lambda source: [(source / name).unlink() for name in names]


def nested(deep: int) -> list[Any]:
    return [] if deep == 1 else [nested(deep - 1)]


class Row(NamedTuple):
    id: str
    damage: Damage
    says: tuple[str, ...]


REJECTED = (f"transformers {transformers.__version__} rejects", "Expected a config that AutoConfig.from_pretrained")
ADAPTER = ("{source} holds an adapter (adapter_config.json)", "Expected plain weights", "merge_and_unload")
PICKLE = (
    "{source}/pytorch_model.bin holds more than tensors",
    "was not loaded",
    "Expected a state dict",
    "Use a safetensors version",
)
DAMAGED = ("{source}/model.safetensors is damaged", "a complete safetensors file", "Download the file again")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
NO_MAP = ("no usable weight_map", "maps tensor names to file names")

CONFIGS = [
    Row("missing", remove("config.json"), ("no config.json in {source}", "Expected a directory as", "Name the direct")),
    Row("not json", text("config.json", "{"), ("{source}/config.json cannot be read", "a JSON object", "Restore")),
    Row("not text", lambda source: (source / "config.json").write_bytes(b"\xff"), ("config.json cannot be read",)),
    Row("pointer", text("config.json", POINTER), ("{source}/config.json is a pointer of git-lfs", "the file itself")),
    Row("deep list", config(deep=nested(101)), ("nested more than 100 deep", "a JSON object")),
    Row("deep object", text("config.json", '{"a":' * 600 + "1" + "}" * 600), ("nested more than 100", "JSON object")),
    Row(
        "half a character",
        text("config.json", '{"model_type": "\\ud800"}'),
        ("config.json cannot be read", "surrogates"),
    ),
    Row("layers", config(num_hidden_layers=100_000), ("num_hidden_layers: 100000", "at most 512", "Check the config")),
    Row("heads", config(num_attention_heads=10**9), ("num_attention_heads: 1000000000", "at most 8,192")),
    Row("labels", config(num_labels=10**10), ("num_labels: 10000000000", "Expected at most")),
    Row("deep layers", config(text_config={"n_layer": 9999}), ("n_layer: 9999", "Expected at most")),
    Row("type a list", config(model_type=["llama"]), ("has model_type ['llama']", "such as 'llama'")),
    Row("type a number", config(model_type=3), ("has model_type 3", "such as 'llama'")),
    Row("type an object", config(model_type={"a": 1}), ("has model_type {{'a': 1}}", "such as 'llama'")),
    Row("steering type", config(model_type="\x1b[31mred\n"), ("'\\x1b[31mred\\n' is unknown to transformers",)),
    Row("deep json", text("config.json", "[" * 100_000), ("{source}/config.json cannot be read", "a JSON object")),
    Row("a list", text("config.json", "[]"), ("{source}/config.json holds a JSON list", "Expected a JSON object")),
    Row("a directory", lambda s: ((s / "config.json").unlink(), (s / "config.json").mkdir()), ("is a directory",)),
    Row("no type", config(model_type=None), ("has model_type None", "such as 'llama'", "Add the key")),
    Row("no such type", config(model_type="lama"), ("'lama' is unknown to transformers", "Did you mean llama")),
    Row("latent", config(model_type="deepseek_v3"), ("'deepseek_v3' cannot be converted", MLA)),
    Row(
        "two towers",
        config(model_type="clip"),
        ("'clip' cannot be converted", "no KV cache", "would have to be written"),
    ),
    Row("position heads", config(model_type="xlnet"), ("'xlnet' cannot be converted", "positions", "would have to be")),
    Row("no attention", config(model_type="mamba"), ("'mamba' cannot be converted", "it has no attention")),
    Row("heads as text", config(num_key_value_heads="four"), (*REJECTED, "'four'")),
    Row("no KV head", config(num_key_value_heads=0), REJECTED),
    Row("uneven heads", config(num_key_value_heads=3), ("--groups 2 does not fit a model with 3 KV heads", "1, 3")),
    Row("width as text", config(hidden_size="wide"), (*REJECTED, "'wide'")),
    Row("architectures", config(architectures=[1]), ("config.json", "architectures")),
    *(
        Row(f"code of its own, {name}", config(model_type=name, auto_map={"AutoModel": "m.M"}), (f"'{name}' is", *says))
        for name, says in {
            "mpt_custom": ("which mha2gqa does not run", "Take its authors' version"),
            "internlm": ("which mha2gqa does not run", "written as a llama model"),
            "chatglm": ("which mha2gqa does not run", "glm"),
        }.items()
    ),
    Row("other width", config(head_dim=8), ("has shape [64, 64]", "Expected shape [32, 64]", "Check that config.json")),
]

WEIGHTS = [
    Row("no weights", remove("model.safetensors"), ("There are no weights in {source}", "Expected model.safetensors")),
    Row("truncated", truncate("model.safetensors"), DAMAGED),
    Row("empty", text("model.safetensors", ""), DAMAGED),
    Row("pointer", text("model.safetensors", POINTER), ("{source}/model.safetensors is a pointer of git-lfs", "pull")),
    Row("tokenizer pointer", text("tokenizer.json", POINTER), ("{source}/tokenizer.json is a pointer of git-lfs",)),
    Row("overlapping", header(a=entry(0, 64), b=entry(32, 64)), DAMAGED),
    Row("holes", header(a=entry(0, 16), b=entry(32, 64)), DAMAGED),
    Row("beyond the end", header(a=entry(0, 128)), DAMAGED),
    Row("backwards", header(a=entry(0, 64), b=entry(64, 32)), DAMAGED),
    Row("no K", tensors(lambda content: content.pop(K)), (f"'{K}' is missing", "shape [64, 64]", "belong together")),
    Row(
        "other K",
        tensors(lambda content: content.update({K: torch.zeros(48, 64)})),
        (f"'{K}' has shape [48, 64]", "Expected shape [64, 64]", "belong together"),
    ),
    Row(
        "other Q",
        tensors(lambda content: content.update({"model.norm.weight": torch.zeros(63)})),
        ("'model.norm.weight'", "63", "Expected shape"),
    ),
    Row("int8", retype(torch.int8), (f"'{K}' has dtype I8: the checkpoint is quantised", "one of F64", "unquantised")),
    Row("fp8", retype(torch.float8_e4m3fn), (f"'{K}' has dtype F8_E4M3: the", "one of F64", "unquantised")),
    Row("NaN", put(K, float("nan")), (f"'{K}' holds NaN or infinity", "Expected finite", "earlier one")),
    Row("infinity", put(V, float("-inf")), (f"'{V}' holds NaN or infinity", "Expected finite", "earlier one")),
    Row("adapter beside", text("adapter_config.json", "{}"), ADAPTER),
    Row("adapter alone", adapter_alone, ADAPTER),
    Row("evil pickle", pickles(evil), PICKLE),
    Row("evil old pickle", pickles(evil, _use_new_zipfile_serialization=False), PICKLE),
    Row("evil bare pickle", plain_pickle, PICKLE),
    Row("wrapped pickle", pickles(lambda _: {"state_dict": {}}), ("(it holds 'state_dict')", "by name", "Unwrap it")),
    Row("pickled list", pickles(lambda _: [torch.zeros(1)]), ("(it holds list)", "tensors by name", "Unwrap it")),
]

SHARDS = [
    Row("no shard", remove(SHARD), (f"{INDEX} names {SHARD}, which is not in {{source}}", "Download the missing")),
    Row("truncated shard", truncate(SHARD), (f"{SHARD} is damaged", "complete", "Download the file again")),
    Row("index not json", text(INDEX, "{"), ("cannot be read", "Expected a JSON object", "Restore the file")),
    Row("index a list", text(INDEX, "[]"), (f"{INDEX} holds a JSON list", "Expected a JSON object")),
    Row("index empty", edit(INDEX, weight_map={}), NO_MAP),
    Row("index of numbers", edit(INDEX, weight_map={K: 1}), NO_MAP),
    Row("index upwards", index(lm_head__weight="../x.safetensors"), ("'../x.safetensors'", "without a path", "trust")),
    Row("index absolute", index(lm_head__weight="/etc/passwd"), ("'/etc/passwd'", "without a path", "Do not use")),
    Row("index below", index(lm_head__weight="a/b.safetensors"), ("'a/b.safetensors'", "without a path", "Do not use")),
    Row("index backslash", index(lm_head__weight="..\\x.safetensors"), ("x.safetensors'", "without a path", "trust")),
    Row("index dots", index(lm_head__weight=".."), ("'..'", "without a path", "Do not use")),
    Row(
        "index of another",
        index(ghost=SHARD),
        (f"'ghost' is in {SHARD}, but no file holds it", "an index that agrees", "Download the checkpoint"),
    ),
    Row(
        "tensor elsewhere",
        index(lm_head__weight=SHARD, model__embed_tokens__weight=SHARD),
        (f"is in {SHARD}, but it is in model-0000", "an index that agrees", "Download the checkpoint"),
    ),
    Row(
        "tensor twice",
        lambda source: shutil.copy(source / SHARD, source / "model-00001-of-00003.safetensors"),
        ("is both in model-00001-of-00003.safetensors", "each tensor in one file", "Delete the stale file"),
    ),
    Row(
        "stale single file",
        lambda source: shutil.copy(source / SHARD, source / "model.safetensors"),
        ("holds both model.safetensors and model.safetensors.index.json", "one set of weights", "Delete the one"),
    ),
]


def rows(*tables: list[Row]) -> list[Any]:
    return [pytest.param(row, id=row.id) for table in tables for row in table]


@pytest.mark.parametrize("row", rows(CONFIGS, WEIGHTS))
def test_source(tiny, refuse, row):
    row.damage(source := tiny())
    refuse("convert", source, "-g", 2, "-o", "new/out", says=tuple(part.format(source=source) for part in row.says))


@pytest.mark.parametrize("row", rows(SHARDS))
def test_sharded_source(tiny, refuse, row):
    row.damage(source := tiny(max_shard_size="150KB"))
    refuse("convert", source, "-g", 2, "-o", "out", says=tuple(part.format(source=source) for part in row.says))


def test_a_source_that_shrinks_while_it_is_read(tiny, cli, monkeypatch, tmp_path):
    file, size = (source := tiny()) / "model.safetensors", (source / "model.safetensors").stat().st_size
    monkeypatch.setattr(carry, "check_output", lambda *_, **__: os.truncate(file, size - 4096))
    answer = cli("convert", source, "-g", 2, "-o", "out")
    assert answer.code == 1
    assert f"{file} ended at byte {size - 4096}. Expected" in answer.err
    assert list(tmp_path.iterdir()) == [source]


# What is asked for


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-g", 3], ("--groups 3 does not fit a model with 4 KV heads", "Expected one of 1, 2, 4.")),
        (["-g", 5], ("--groups 5 does not fit more than its 4 KV heads", "1, 2, 4", "use `mha2gqa expand`")),
        (["-g", 0], ("--groups 0", "Expected one of 1, 2, 4.")),
        (["-g", -2], ("--groups -2", "Expected one of 1, 2, 4.")),
        (["-g", 2, "--max-shard-size", "5 apples"], ("--max-shard-size 5 apples", "Expected a number with a unit")),
        (["-g", 2, "--max-shard-size", "0GB"], ("--max-shard-size 0GB", "such as 5GB or 500MB")),
        (["-g", 2, "--max-shard-size", "-5GB"], ("--max-shard-size -5GB", "such as 5GB or 500MB")),
        (["-g", 2, "--max-shard-size", 400 * "9"], ("--max-shard-size 999", "such as 5GB or 500MB")),
        (["-g", 2, "-o", 250 * "x"], ("xxx", "with -o")),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)
def test_request(tiny, refuse, arguments, says):
    refuse("convert", tiny(), *arguments, says=says)


@pytest.mark.parametrize("heads", [2, 3, 8, 0, -4])
def test_heads_to_expand_to(tiny, refuse, heads):
    says = (f"4 KV heads cannot be repeated to {heads}", "Expected one of 4.")
    refuse("expand", tiny(), "-o", "out", "--heads", heads, says=says)


@pytest.mark.parametrize("command", ["convert", "expand", "inspect"])
def test_no_such_directory(refuse, command):
    options = {"convert": ["-g", 2], "expand": ["-o", "out"], "inspect": []}[command]
    refuse(command, "./nowhere", *options, says=("'./nowhere'", "Expected a directory", "Check the path"))


@pytest.mark.parametrize("command", ["convert", "expand"])
def test_names_that_are_no_text(tiny, refuse, tmp_path, monkeypatch, command):
    options = ["-g", 2] if command == "convert" else []
    source = tiny()
    refuse(command, source, *options, "-o", "o\udcff", says=("The argument 'o\\udcff' is not UTF-8",))
    (tmp_path / "\udce9").mkdir()
    source.rename(tmp_path / "\udce9" / "source")
    refuse(command, tmp_path / "\udce9" / "source", *options, says=("is not UTF-8",))
    monkeypatch.chdir(tmp_path / "\udce9")
    with pytest.raises(SourceError, match="is not UTF-8"):
        find_source("source")
    with pytest.raises(OutputError, match="is not UTF-8"):
        check_output(Path("result"), tmp_path, 1, force=False)


def test_a_file_in_place_of_a_directory(tiny, refuse):
    file = tiny() / "model.safetensors"
    refuse("convert", file, "-g", 2, says=(f"'{file}' is a file", "Expected the directory", f"Try '{file.parent}'"))


@pytest.fixture
def server(monkeypatch, tmp_path_factory):
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path_factory.mktemp("home"))
        yield server


def test_no_such_repository(server, refuse):
    refuse("convert", "org/lama", "-g", 2, says=("'org/lama'", "Expected a directory, or", "Check the spelling"))


def test_no_network(server, refuse):
    server.down = True
    refuse("convert", "org/llama", "-g", 2, says=("org/llama cannot be downloaded", "503", "name a local directory"))


# Where it is to go


def test_an_output_that_exists(tiny, refuse, cli, tree, tmp_path):
    source = tiny()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    request = ("convert", source, "-g", 2, "-o", "out")
    refuse(*request, says=("out exists.", "Expected a directory that does not", "Choose another with -o"))
    refuse(*request, "--force", says=("was not made by mha2gqa", "an output of an earlier run", "Remove it yourself"))
    (tmp_path / "link").symlink_to("nowhere")
    refuse(*request[:-1], "link", "--force", says=("link exists", "Expected", "Remove it yourself"))
    (tmp_path / "file").touch()
    refuse(*request[:-1], "file", "--force", says=("file exists", "Expected", "Remove it yourself"))


def test_an_output_of_an_earlier_run(tiny, refuse, cli, tree, tmp_path):
    request = ("convert", tiny(), "-g", 2, "-o", "out")
    assert cli(*request).code == 0
    first = tree(tmp_path / "out")
    refuse(*request, says=("out exists", "Expected", "or replace it with --force"))
    (tmp_path / "out/model.safetensors").write_text("stale")
    (tmp_path / "out/left-over.txt").touch()
    assert cli(*request, "--force").code == 0
    assert tree(tmp_path / "out") == first
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_a_forced_run_that_fails_keeps_the_earlier_output(tiny, refuse, cli):
    source = tiny()
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    put(K, float("nan"))(source)
    refuse("convert", source, "-g", 1, "-o", "out", "--force", says=(K,))


def test_an_empty_directory_is_filled(tiny, cli, tmp_path, monkeypatch):
    source = tiny()
    (tmp_path / "out").mkdir()
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli("convert", source, "-g", 2, "-o", ".").code == 0
    assert (tmp_path / "here/config.json").is_file()


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("output", ["source", "source/out", "source/a/b", "parent", "loop/out"])
def test_output_and_source_inside_one_another(tiny, refuse, tmp_path, output, force):
    model = tiny("parent/source") if output == "parent" else tiny()
    (tmp_path / "loop").symlink_to("source")
    says = (f"The output {output} and the source {model} lie inside one another", "apart from the source", "with -o")
    refuse("convert", model, "-g", 2, "-o", output, *force, says=says)


def test_a_file_where_a_directory_has_to_be(tiny, refuse, tmp_path):
    (tmp_path / "file").touch()
    refuse("convert", tiny(), "-g", 2, "-o", "file/out", says=("Cannot write into", "Expected a directory", "with -o"))


# What the machine refuses


def test_no_space_before_writing(tiny, refuse, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refuse("convert", tiny(), "-g", 2, "-o", "out", says=("The output needs", "1,000 free", "another disk with -o"))


@pytest.mark.parametrize("output", ["out", "new/out"])
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_disk_that_fails_while_writing(tiny, refuse, monkeypatch, output, kind, calls):
    write, left = os.pwrite, iter(range(calls))

    def pwrite(*arguments: Any) -> int:
        if next(left, None) is None:
            raise OSError(kind, os.strerror(kind))
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    refuse("convert", tiny(), "-g", 2, "-o", output, says=(f"Writing {output} failed: {os.strerror(kind)}", "with -o"))


def test_no_space_for_the_small_files(tiny, refuse, monkeypatch):
    def copyfile(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = tiny()
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    refuse("convert", source, "-g", 2, "-o", "out", says=("Writing out failed: No space left on device", "with -o"))


def test_no_permission_to_write(tiny, refuse, monkeypatch, tmp_path):
    source = tiny()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    says = (f"Cannot write into {tmp_path}", "Expected a directory with write permission", "with -o")
    refuse("convert", source, "-g", 2, "-o", "out", says=says)


def test_no_permission_to_create(tiny, refuse, monkeypatch):
    def mkdir(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    source = tiny()
    monkeypatch.setattr(Path, "mkdir", mkdir)
    refuse("convert", source, "-g", 2, "-o", "out", says=("Writing out failed: Permission denied", "with -o"))


# Usage, and the options file


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--groups"),
        (["--groups", "abc"], "Invalid value for '--groups'"),
        (["--groups", "1.5"], "Invalid value for '--groups'"),
        (["--groups", "2", "--method", "median"], "'median' is not one of mean, first, random"),
        (["--groups", "2", "--grouping", "zigzag"], "'zigzag' is not one of contiguous"),
        (["--groups", "2", "--colour"], "--colour"),
        (["--groups", "2", "--config", "absent.yaml"], "absent.yaml"),
        (["--config", "broken.yaml"], "broken.yaml"),
        (["--config", "list.yaml"], "list.yaml"),
        (["--config", "unknown.yaml"], "unknown.yaml"),
        (["--config", "typed.yaml"], "Invalid value for '--groups'"),
        (["--config", "method.yaml"], "'median' is not one of mean, first, random"),
        (["--config", "binary.yaml"], "binary.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(tiny, cli, tmp_path, tree, arguments, says):
    files = {
        "broken": b"{",
        "list": b"- groups",
        "unknown": b"gruops: 2",
        "typed": b"groups: many",
        "method": b"{groups: 2, method: median}",
        "binary": b"\xff\xfe\xfd",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_bytes(content)
    tiny()
    before = tree(tmp_path)
    answer = cli("convert", "source", "-o", "out", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert says in " ".join(answer.err.replace("\u2502", " ").split())
    assert "Traceback" not in answer.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "groups", "method"),
    [((), 2, "first"), (("--groups", 1), 1, "first"), (("--method", "mean", "--output", "out"), 2, "mean")],
)
def test_options_file(tiny, cli, tmp_path, arguments, groups, method):
    (tmp_path / "convert.yaml").write_text(f"model: {tiny()}\ngroups: 2\nmethod: first\noutput: out\nas_json: true\n")
    answer = cli("convert", "--config", "convert.yaml", *arguments)
    report = json.loads(answer.out)
    assert (answer.code, report["heads_after"], report["method"], report["output"]) == (0, groups, method, "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["num_key_value_heads"] == groups


def test_a_dry_run_writes_nothing(tiny, cli, tmp_path, tree):
    tiny()
    before = tree(tmp_path)
    answer = cli("convert", "source", "-g", 1, "--dry-run")
    assert answer.code == 0
    assert "source-mqa" in answer.out
    assert "nothing was written" in answer.out
    assert tree(tmp_path) == before


def test_a_process_of_its_own_prints_one_line(tiny):
    config(model_type="lama")(source := tiny())
    command = [sys.executable, "-m", "mha2gqa", "convert", str(source), "--groups", "2"]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("error: Model type 'lama' is unknown")
