"""An output that appears whole or not at all: order of syncs and renames, failures, locks, what may be replaced.

Refusals with their whole message, and processes that die, are in `tests/verbs/convert`.
"""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from mha2gqa.errors import OutputError
from mha2gqa.files import finish, staging


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextmanager
def held(directory: Path):
    """The lock that another run would hold."""
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str]]:
    """What is synced and renamed, in order."""
    seen: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        seen.append(("rename", path.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    return seen


def test_everything_is_on_disk_before_it_appears(tiny, cli, tmp_path, events):
    assert cli("convert", tiny(max_shard_size="150KB"), "-g", 2, "-o", "out").code == 0
    files = {path.name for path in (tmp_path / "out").rglob("*")}
    renamed = events.index(("rename", ".out.partial"))
    assert files | {".out.partial"} <= {name for kind, name in events[:renamed] if kind == "sync"}
    assert events[renamed + 1 :] == [("sync", tmp_path.name)]


def test_config_is_written_last(tiny, cli, tmp_path, monkeypatch):
    """Until then, nobody can take the directory for a checkpoint."""
    write, before = finish.write_config, set()

    def write_config(path: Path, *arguments: object) -> None:
        before.update(file.relative_to(path.parent) for file in path.parent.rglob("*"))
        write(path, *arguments)

    monkeypatch.setattr(finish, "write_config", write_config)
    assert cli("convert", tiny(), "-g", 2, "-o", "out").code == 0
    after = {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")}
    assert after - before == {Path("config.json")}


def test_what_a_crash_left_is_cleared_away(tiny, cli, tmp_path, tree):
    assert cli("convert", tiny(), "-g", 2, "-o", "expected").code == 0
    for kind in ("partial", "replaced"):
        (tmp_path / f".out.{kind}/folder").mkdir(parents=True)
        (tmp_path / f".out.{kind}/model.safetensors").write_text("half")
        (tmp_path / f".out.{kind}/folder/link").symlink_to(tmp_path / "source")
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0
    assert names(tmp_path) == {"source", "expected", "out"}
    ours, expected = tree(tmp_path / "out"), tree(tmp_path / "expected")
    assert ours | {"README.md": b""} == expected | {"README.md": b""}
    assert names(tmp_path / "source") > {"config.json", "model.safetensors"}


def test_a_second_run_is_refused(tiny, cli, tmp_path):
    tiny()
    with held(tmp_path / ".out.partial"):
        (tmp_path / ".out.partial/model.safetensors").write_text("of the first run")
        answer = cli("convert", "source", "-g", 2, "-o", "out")
        assert (answer.code, answer.err.count("\n")) == (1, 1)
        assert "Another run is writing out. Wait for it, or choose another with -o." in answer.err
        assert (tmp_path / ".out.partial/model.safetensors").read_text() == "of the first run"
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_what_appears_meanwhile_is_not_replaced(tiny, cli, tmp_path, monkeypatch, force):
    write = finish.write_record

    def write_record(*arguments: object) -> None:
        write(*arguments)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").write_text("mine")

    monkeypatch.setattr(finish, "write_record", write_record)
    answer = cli("convert", tiny(), "-g", 2, "-o", "out", *force)
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"
    assert answer.code == 1
    assert "out exists" in answer.err
    assert names(tmp_path) == {"source", "out"}


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_nothing_is_left_whatever_happens(tiny, tmp_path, monkeypatch, error):
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert

    def write_record(*_: object) -> None:
        raise error

    monkeypatch.setattr(finish, "write_record", write_record)
    with pytest.raises(type(error)):
        convert(ConvertOptions(model=str(tiny()), groups=2, output=tmp_path / "new/parents/out"))
    assert names(tmp_path) == {"source"}


def test_parents_that_were_there_stay(tiny, cli, tmp_path, monkeypatch):
    def write_record(*_: object) -> None:
        raise OutputError("No")

    (tmp_path / "old").mkdir()
    monkeypatch.setattr(finish, "write_record", write_record)
    assert cli("convert", tiny(), "-g", 2, "-o", "old/new/out").code == 1
    assert names(tmp_path / "old") == set()


def test_what_does_not_read_back_is_refused(tiny, cli, tmp_path, monkeypatch):
    """A disk that stored something else: the headers are read again before the rename."""

    def write_config(path: Path, *_: object) -> None:
        path.write_text("{}")
        next(path.parent.glob("*.safetensors")).write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    monkeypatch.setattr(finish, "write_config", write_config)
    answer = cli("convert", tiny(), "-g", 2, "-o", "out")
    assert (answer.code, names(tmp_path)) == (1, {"source"})
    assert "What was written does not read back as planned. Check the disk, and try again." in answer.err


def test_only_an_output_of_ours_may_be_replaced(tmp_path):
    (source := tmp_path / "source").mkdir()
    (ours := tmp_path / "ours").mkdir()
    (ours / "mha2gqa.json").touch()
    staging.check_output(ours, source, 0, force=True)
    (tmp_path / "link").symlink_to(ours)
    for path in (ours, tmp_path / "link"):
        with pytest.raises(OutputError, match="exists"):
            staging.check_output(path, source, 0, force=path != ours)
