"""Standard streams that are closed, full, narrow, or read no more."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mha2gqa import console
from mha2gqa.cli import main
from mha2gqa.terminal import open_streams, told_output


@pytest.mark.parametrize("at_once", [False, True], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("inspect", "source", "--json"), ("inspect", "source")]
)
def test_a_full_disk_behind_standard_output_is_one_message(
    arguments: tuple[str, ...], at_once: bool, tiny: Callable[..., Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    tiny()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mha2gqa", *arguments])
    raw = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - the stream below closes it
    with io.TextIOWrapper(raw, write_through=at_once) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1
    answer = capsys.readouterr().err
    assert answer.count("\n") == 1
    assert "Standard output cannot be written: No space left on device" in answer


def test_nobody_who_reads_is_no_error(tiny: Callable[..., Path], tmp_path: Path, monkeypatch, capsys) -> None:
    tiny()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mha2gqa", "inspect", "source"])
    monkeypatch.setattr(console.out, "quiet", False)  # rich sets it for the rest of the process
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody, pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "stdout", nobody)
        main()
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("nowhere", ["/dev/full", "nobody"])
def test_notes_that_cannot_be_written_end_no_run(nowhere: str, monkeypatch, capsys) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    notes = Path(nowhere).open("w") if nowhere != "nobody" else os.fdopen(writing, "w")  # noqa: SIM115
    notes.reconfigure(line_buffering=True)
    monkeypatch.setattr(sys, "stderr", notes)
    with told_output():
        console.print_note("half way")
        sys.stdout.write("done\n")
    notes.close()
    assert capsys.readouterr().out == "done\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_swallows_what_is_printed(name: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, name, None)
    open_streams()
    assert getattr(sys, name).write("lost") == 4
    getattr(sys, name).flush()


def test_what_a_terminal_cannot_show_is_written_out(monkeypatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    open_streams()
    sys.stdout.write("\ud800 \u2192\n")
    sys.stdout.flush()
    assert shown.getvalue() == b"\\ud800 \\u2192\n"
