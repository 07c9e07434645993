"""What is opened at all: ordinary files of the checkpoint itself; and a source that something else writes to meanwhile.

ODDITIES   what else can lie under a name: each is refused by name, at once, and nothing is written
SEATS      the names under which a file is read: config, weights, index, tokenizer, code, folders of modules
"""

import errno
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mha2gqa.errors import CheckpointError
from mha2gqa.files import companions as beside
from mha2gqa.files import finish, plain
from mha2gqa.files.plain import check_unchanged, depth, look, made_visible, read_json
from mha2gqa.files.reader import read_checkpoint
from mha2gqa.record import carry


def link_out(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b"{}"
    (elsewhere := path.parents[len(path.parts) - 1 - path.parts.index("source")] / "elsewhere").mkdir(exist_ok=True)
    (elsewhere / "private").write_bytes(content)
    replace(path)
    path.symlink_to(elsewhere / "private")


def link_to_device(path: Path) -> None:
    replace(path)
    path.symlink_to("/dev/zero")


def broken_link(path: Path) -> None:
    replace(path)
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    replace(path)
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    replace(path)
    os.mkfifo(path)


def directory(path: Path) -> None:
    replace(path)
    path.mkdir()


def sock(path: Path) -> None:
    replace(path)
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def replace(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)


ODDITIES = {
    link_out: "outside of",
    link_to_device: "outside of",
    broken_link: "which is not there",
    link_to_itself: "cannot be opened",
    fifo: "is a FIFO",
    directory: "is a directory",
    sock: "is a socket",
}
SEATS = (
    *("config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "LICENSE", "code.py"),
    *("additional_chat_templates/tools.jinja", "1_Pooling/config.json", "modules.json"),
)


@pytest.fixture
def source(tiny: Callable[..., Path]) -> Path:
    path = tiny()
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | {"auto_map": {"AutoModel": "code.Model"}}))
    (path / "code.py").write_text("")
    (path / "modules.json").write_text(json.dumps([{"path": "", "type": "a.b"}, {"path": "1_Pooling", "type": "a.c"}]))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("make", "seat"),
    [
        pytest.param(make, seat, id=f"{make.__name__}-{seat}")
        for make, seat in itertools.product(ODDITIES, SEATS)
        if (make, seat) != (directory, "LICENSE")  # an empty folder under that name is nobody's
    ],
)
def test_what_is_no_ordinary_file_is_refused_by_name(source, seat, make):
    make(source / seat)
    started = time.monotonic()
    if make is directory and seat in ("tokenizer.json", "generation_config.json"):
        assert seat + "/" in read_checkpoint(source).left_behind
        return
    if make is directory and Path(seat).parent.name:
        assert Path(seat) not in read_checkpoint(source).companions
        return
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(source)
    assert str(source / seat) in str(caught.value)
    assert ODDITIES[make] in str(caught.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("make", [link_out, fifo, broken_link, sock], ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["notes.txt", "optimizer.pt", "events.out", "old/model.safetensors"])
def test_what_nobody_needs_is_not_looked_at(source, make, name):
    make(source / name)
    checkpoint = read_checkpoint(source)
    assert Path(name) not in checkpoint.companions
    assert name.partition("/")[0] in {one.rstrip("/") for one in checkpoint.left_behind}


@pytest.mark.parametrize("make", [link_out, fifo, sock], ids=lambda one: one.__name__)
@pytest.mark.parametrize("command", ["convert", "expand", "inspect", "sweep"])
def test_every_command_refuses(source, cli, tmp_path, make, command):
    make(source / ("config.json" if command == "inspect" else "tokenizer.json"))
    options = {"convert": ("-g", 2, "-o", "out"), "expand": ("-o", "out"), "inspect": (), "sweep": ("-g", 2)}[command]
    answer = cli(command, source, *options)
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert ODDITIES[make] in answer.err
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "elsewhere"}


def test_a_shard_that_is_a_link_out(tiny):
    source = tiny(max_shard_size="150KB")
    shard = next(source.glob("model-00002*"))
    link_out(shard)
    with pytest.raises(CheckpointError, match=f"{shard} leads to .*private, outside of"):
        read_checkpoint(source)


def test_links_inside_and_into_the_cache_of_the_hub_are_followed(tiny, tmp_path, cli):
    source = tiny()
    snapshot = tmp_path / "models--org--name/snapshots/0123456789"
    (blobs := tmp_path / "models--org--name/blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / f"{number:040x}")
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    assert cli("convert", snapshot, "-g", 2, "-o", "out").code == 0
    assert cli("convert", source, "-g", 2, "-o", "expected").code == 0
    same = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")}
    assert same == {path.relative_to(tmp_path / "expected") for path in (tmp_path / "expected").rglob("*")}
    (source / "vocab.txt").symlink_to("tokenizer.json")
    assert cli("convert", source, "-g", 2, "-o", "inside").code == 0
    assert not (tmp_path / "inside/vocab.txt").is_symlink()
    (snapshot / "vocab.txt").symlink_to(source / "tokenizer.json")
    answer = cli("convert", snapshot, "-g", 2, "-o", "outside")
    assert (answer.code, "vocab.txt leads to" in answer.err) == (1, True)


def test_a_directory_that_is_itself_a_link_is_followed(tiny, tmp_path):
    tiny()
    (tmp_path / "link").symlink_to("source")
    assert read_checkpoint(tmp_path / "link").companions == read_checkpoint(tmp_path / "source").companions


def test_an_adapter_under_whatever_it_is(tiny):
    source = tiny()
    os.mkfifo(source / "adapter_config.json")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        read_checkpoint(source)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_permission_is_not_damage(tiny, pickled, monkeypatch, name):
    source = tiny()
    if name == "pytorch_model.bin":
        pickled(source)
    own = Path.open

    def forbid(path: Path, *arguments: object, **options: object) -> object:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return own(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbid)
    monkeypatch.setattr(plain, "_LARGEST_POINTER", 1 << 30)
    with pytest.raises(CheckpointError, match=f"{name} cannot be opened: Permission denied.*permissions"):
        read_checkpoint(source)


# JSON


def test_how_deep_json_is():
    assert [depth(one) for one in (1, [], {}, [[]], {"a": [{"b": 1}, 2]}, [1, [2, [3]]])] == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("text", ['{"a": "\\ud83d\\ude00"}', '{"a": "\\\\ud800"}'])
def test_whole_characters_are_read(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == json.loads(text)


@pytest.mark.parametrize("text", ['{"\\udfff": 1}', '{"a": ["\\ud800x"]}', '{"a": "\\uDC00"}'])
def test_half_characters_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match="surrogates"):
        read_json(tmp_path / "a.json")


def test_huge_json_is_refused_by_its_size(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(CheckpointError, match="it has 68,157,440 bytes"):
        read_json(tmp_path / "a.json")


def test_visible_words():
    assert made_visible({"\x1b[2J": ["\u202eok", 1, None, {"a\tb": "é\x07"}]}) == {
        "\\x1b[2J": ["\\u202eok", 1, None, {"a\tb": "é\\x07"}]
    }


# A source that changes


def grows(source: Path) -> None:
    with (source / "tokenizer.json").open("a") as file:
        file.write(" ")


def touched(source: Path) -> None:
    time.sleep(0.02)
    (source / "model.safetensors").touch()


def other_config(source: Path) -> None:
    time.sleep(0.02)
    (source / "config.json").write_bytes((source / "config.json").read_bytes())


def gone(source: Path) -> None:
    (source / "modeling_own.py").unlink()


def swapped(source: Path) -> None:
    content = (source / "model.safetensors").read_bytes()
    (source / "new").write_bytes(content + b"")
    time.sleep(0.02)
    os.utime(source / "new")
    (source / "new").rename(source / "model.safetensors")


CHANGES = {
    grows: "tokenizer.json has changed",
    touched: "model.safetensors has changed",
    other_config: "config.json has changed",
    gone: "modeling_own.py has vanished",
    swapped: "model.safetensors has changed",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("command", ["convert", "expand"])
def test_a_source_that_changes_while_it_is_read(tiny, cli, tmp_path, monkeypatch, change, command):
    source = tiny(**({} if command == "convert" else {"num_key_value_heads": 2}))
    own = finish.check_written

    def check_written(*arguments: object) -> None:
        own(*arguments)
        change(source)

    monkeypatch.setattr(finish, "check_written", check_written)
    answer = cli(command, source, *(("-g", 2) if command == "convert" else ()), "-o", "out")
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert f"{source}/{CHANGES[change]} while it was read" in answer.err
    assert "that nothing else writes to" in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "additional_chat_templates/tools.jinja"])
def test_a_source_that_vanishes_while_it_is_read(tiny, cli, tmp_path, monkeypatch, name):
    source = tiny()
    own = carry.divide

    def divide(*arguments: object) -> object:
        (source / name).unlink()
        return own(*arguments)

    monkeypatch.setattr(carry, "divide", divide)
    answer = cli("convert", source, "-g", 2, "-o", "out")
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert f"{source / name} cannot be opened: No such file or directory" in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_uptraining_notices_as_well(tmp_path):
    """It reads the converted checkpoint for hours."""
    (tmp_path / "a").write_text("1")
    states = {tmp_path / "a": look(tmp_path / "a", tmp_path)}
    check_unchanged(states)
    (tmp_path / "a").write_text("22")
    with pytest.raises(CheckpointError, match="has changed"):
        check_unchanged(states)


def test_a_companion_that_cannot_be_read_is_not_a_disk_that_cannot_be_written(tiny, cli, monkeypatch):
    source = tiny()

    def copyfile(path: Path, _: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(beside.shutil, "copyfile", copyfile)
    answer = cli("convert", source, "-g", 2, "-o", "out")
    assert answer.code == 1
    assert "cannot be opened: Permission denied" in answer.err
    assert "Writing out failed" not in answer.err


def test_every_file_that_is_read_is_watched(tiny):
    source = tiny(dtype=torch.bfloat16, max_shard_size="150KB")
    checkpoint = read_checkpoint(source)
    watched = {path.relative_to(source) for path in checkpoint.states}
    assert watched >= {Path("config.json"), Path("model.safetensors.index.json"), *checkpoint.companions}
    assert {info.file for info in checkpoint.tensors} <= checkpoint.states.keys()
