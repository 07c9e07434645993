"""Working directories: only what carries our mark is cleared, and no link is followed, whoever works there.

SEATS     who works where: convert and expand, refinements and sweeps, uptrain, the text of a sweep
INTRUDERS what else may lie there: each is refused by name, and stays as it is, with all behind it
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.errors import OutputError
from mha2gqa.files import working
from mha2gqa.files.staging import check_output, move, staged, workspace
from mha2gqa.files.working import MARK, claimed, clear, has_links, make_ours, remove, replace_file
from mha2gqa.verbs.sweep.store import write_results
from mha2gqa.verbs.sweep.texts import divide
from mha2gqa.verbs.uptrain.workspace import check_workspace, training_workspace, workspace_of


@contextmanager
def divided(output: Path) -> Iterator[None]:
    (output.parent / "words.txt").write_text("many words\n" * 99)
    divide([str(output.parent / "words.txt")], None, 100, output)
    yield


SEATS: dict[str, tuple[str, Callable[[Path], AbstractContextManager[Any]]]] = {
    "convert": (".out.partial", lambda output: staged(output, force=False)),
    "convert --force": (".out.partial", lambda output: staged(output, force=True)),
    "refine": (".out.layers", lambda output: workspace(output, "same", keep=True)),
    "aligned": (".out.layers", lambda output: workspace(output, "same", keep=False)),
    "uptrain": (".out.uptrain", lambda output: training_workspace(output, {}, resume=False, is_main=True)),
    "sweep": ("out", divided),
}


def link_to_directory(seat: Path, mine: Path) -> None:
    seat.symlink_to(mine)


def link_to_marked(seat: Path, mine: Path) -> None:
    (mine / MARK).write_bytes(working._CONTENT)
    seat.symlink_to(mine)


def broken_link(seat: Path, mine: Path) -> None:
    seat.symlink_to(mine / "nowhere")


def directory(seat: Path, mine: Path) -> None:
    seat.mkdir()
    (seat / "letters.txt").write_text("mine")


def other_mark(seat: Path, mine: Path) -> None:
    directory(seat, mine)
    (seat / MARK).write_text("not ours")


def linked_mark(seat: Path, mine: Path) -> None:
    directory(seat, mine)
    (mine / "mark").write_bytes(working._CONTENT)
    (seat / MARK).symlink_to(mine / "mark")


def file(seat: Path, mine: Path) -> None:
    seat.write_text("mine")


def fifo(seat: Path, mine: Path) -> None:
    os.mkfifo(seat)


INTRUDERS = (link_to_directory, link_to_marked, broken_link, directory, other_mark, linked_mark, file, fifo)


def listing(directory: Path) -> dict[str, object]:
    def content(path: Path) -> object:
        return path.readlink() if path.is_symlink() else path.is_file() and path.read_text()

    return {str(path): content(path) for path in directory.rglob("*") if path.name != "words.txt"}


@pytest.mark.parametrize("seat", SEATS)
@pytest.mark.parametrize("intrude", INTRUDERS, ids=lambda one: one.__name__)
def test_what_is_not_ours_stays_as_it_is(tmp_path, seat, intrude):
    (mine := tmp_path / "mine").mkdir()
    (mine / "thesis.tex").write_text("all of it")
    name, work_in = SEATS[seat]
    intrude(tmp_path / name, mine)
    before = listing(tmp_path)
    with pytest.raises(OutputError) as caught, work_in(tmp_path / "out"):
        raise AssertionError("nobody may work here")
    assert name in str(caught.value)
    assert "Move it away" in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("seat", SEATS)
def test_what_a_kill_leaves_of_a_beginning_is_taken_over(tmp_path, seat):
    name, work_in = SEATS[seat]
    for content in (None, b"", working._CONTENT[:9]):
        (tmp_path / name).mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / name / MARK).write_bytes(content)
        with work_in(tmp_path / "out"):
            pass
        assert not (tmp_path / name).exists() or seat.startswith(("convert", "sweep"))
        remove(tmp_path / "out") if (tmp_path / "out").exists() else None


@pytest.mark.parametrize("command", ["convert", "expand"])
def test_refused_before_anything_is_computed(tiny, refuse, tmp_path, command):
    (tmp_path / "home").mkdir()
    (tmp_path / ".out.partial").symlink_to("home")
    options = {"convert": ("-g", 2), "expand": ()}[command]
    source = tiny(**({} if command == "convert" else {"num_key_value_heads": 2}))
    refuse(command, source, *options, "-o", "out", says=(f"{tmp_path}/.out.partial is a link to home", "Move it away"))


def test_refused_before_layers_are_computed(tiny, refuse, tmp_path):
    (tmp_path / ".out.layers").mkdir()
    (tmp_path / ".out.layers/00000.safetensors").write_text("not a layer of ours")
    says = (".out.layers was not made by mha2gqa", "Expected nothing there", "Move it away")
    refuse("convert", tiny(), "-g", 2, "--method", "aligned", "--data", "none", "-o", "out", says=says)


def test_uptrain_looks_before_it_plans(tmp_path):
    (tmp_path / "home/checkpoint-3").mkdir(parents=True)
    (tmp_path / "home/checkpoint-3/trainer_state.json").write_text("{}")
    workspace_of(tmp_path / "out").symlink_to("home")
    for resume in (False, True):
        with pytest.raises(OutputError, match="is a link to home"):
            check_workspace(tmp_path / "out", resume=resume, force=True)


def test_links_inside_are_never_gone_on_with(tmp_path):
    """A layer that is a link would be read, or written through."""
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(KeyboardInterrupt), workspace(tmp_path / "out", "same", keep=True) as work:
        (work / "00000.safetensors").write_text("ours")
        raise KeyboardInterrupt
    (work / "00001.safetensors").symlink_to(tmp_path / "mine.safetensors")
    assert has_links(work)
    with workspace(tmp_path / "out", "same", keep=True) as work:
        assert {path.name for path in work.iterdir()} == {MARK, "fingerprint"}
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_clear_removes_links_and_not_what_they_name(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    make_ours(work := tmp_path / "work")
    (work / "folder").mkdir()
    for place in (work, work / "folder"):
        (place / "link").symlink_to(tmp_path / "mine")
        (place / "file").symlink_to(tmp_path / "mine/thesis.tex")
    clear(work)
    assert [path.name for path in work.iterdir()] == [MARK]
    assert (tmp_path / "mine/thesis.tex").exists()


def test_the_mark_goes_last(tmp_path, monkeypatch):
    """Whatever is left of a removal that was killed is still ours."""
    make_ours(work := tmp_path / "work")
    (work / "a").write_text("1")
    (work / "b").mkdir()

    def unlink(path: Path, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        remove(work)
    monkeypatch.undo()
    with claimed(work, tmp_path / "out"):
        remove(work)


def test_what_was_being_replaced_is_put_back(tmp_path):
    """Killed between the two renames: the next run has the earlier output again before it does anything."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mha2gqa.json").write_text("{}")
    make_ours(work := tmp_path / ".out.partial")
    (tmp_path / "out").rename(work / "replaced")
    (work / work.name).mkdir()
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True):
        assert (tmp_path / "out/mha2gqa.json").exists()
        raise RuntimeError
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert (tmp_path / "out/mha2gqa.json").exists()


def test_a_run_that_ends_while_another_begins(tmp_path, monkeypatch):
    """The directory that was opened is taken away before it is locked: another is made."""
    flock, calls = working.fcntl.flock, []

    def late(descriptor: int, kind: int) -> None:
        if not calls:
            (tmp_path / "work").rmdir()
        calls.append(descriptor)
        flock(descriptor, kind)

    monkeypatch.setattr(working.fcntl, "flock", late)
    with claimed(tmp_path / "work", tmp_path / "out") as work:
        assert (work / MARK).exists()
    assert len(calls) == 2


@pytest.mark.parametrize("size", [0, 9])
def test_a_single_file_goes_through_no_link(tmp_path, size):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "s.json").symlink_to("mine")
    (tmp_path / ".s.json.partial").symlink_to("mine")
    replace_file(tmp_path / "s.json", b"x" * size)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "s.json").read_bytes() == b"x" * size
    assert not (tmp_path / "s.json").is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_results_of_a_sweep_go_through_no_link(tmp_path):
    class Results:
        def to_json(self) -> dict[str, Any]:
            return {"points": []}

    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".s.json.partial").symlink_to("mine")
    results: Any = Results()
    write_results(tmp_path / "s.json", results)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_finished_checkpoint_is_moved(tmp_path, monkeypatch, elsewhere):
    (made := tmp_path / "work/made/folder").mkdir(parents=True)
    (made / "file").write_text("1")
    if elsewhere:  # another file system
        rename = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            if path.name == "made" and "work" in path.parts:
                raise OSError(18, "Invalid cross-device link")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
    move(made.parent, tmp_path / "kept/point")
    assert (tmp_path / "kept/point/folder/file").read_text() == "1"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["point"]
    assert not made.exists()
    (tmp_path / "work/made").mkdir()
    (tmp_path / "kept/point/mha2gqa.json").touch()
    with pytest.raises(OutputError, match="exists"):
        move(tmp_path / "work/made", tmp_path / "kept/point")


@pytest.mark.parametrize("name", [300 * "x", 250 * "x"])
def test_a_name_that_is_too_long(tmp_path, name):
    (tmp_path / "source").mkdir()
    with pytest.raises(OutputError, match="name too long"), staged(tmp_path / name, force=False):
        raise AssertionError
    with pytest.raises(OutputError, match="name too long"):
        check_output(tmp_path / name, tmp_path / "source", 0, force=False)


def test_a_socket_in_place_of_the_output(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    monkeypatch.chdir(tmp_path)
    server = socket.socket(socket.AF_UNIX)
    server.bind("out")
    for force in (False, True):
        with pytest.raises(OutputError, match="out exists"):
            check_output(Path("out"), Path("source"), 0, force=force)
    server.close()
