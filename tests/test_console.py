"""What is printed of a report's parts, at the width of a pipe and of a terminal, and the bars."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from mha2gqa import console
from mha2gqa.sections import Column, Facts, Paragraph, Part, Section, numbers

NAME = "name"
LONG = "a long text [of] words, " * 3


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def show(*parts: Part, width: int = 160, is_terminal: bool = False) -> str:
        file = io.StringIO()
        stream = Console(file=file, highlight=False, width=width, force_terminal=is_terminal, color_system=None)
        monkeypatch.setattr(console, "out", stream)
        console.print_report(parts)
        return "\n".join(line.rstrip() for line in file.getvalue().split("\n"))

    return show


def test_facts_are_broken_between_words_and_lines_are_not(shown: Callable[..., str]) -> None:
    parts = (Facts((("name", LONG), ("[other]", "[b]"))), LONG)
    assert shown(*parts) == f"name  {LONG.rstrip()}\n      [b]\n{LONG.rstrip()}\n"
    narrow = shown(*parts, width=40).splitlines()
    assert narrow[:3] == [
        "name  a long text [of] words, a long",
        "      text [of] words, a long text",
        "      [of] words,",
    ]
    assert narrow[4:] == [LONG.rstrip()]


def test_paragraphs_are_broken_between_words(shown: Callable[..., str]) -> None:
    assert shown(Paragraph("one two three"), width=8) == "one two\nthree\n"
    assert shown(Paragraph("[one] two"), width=160) == "[one] two\n"


def test_tables_have_titles_only_where_there_are_some(shown: Callable[..., str]) -> None:
    rows = (("a", "1"), ("bb", "100"))
    assert shown(Section(numbers("name", "number"), rows)) == "name  number\na          1\nbb       100\n"
    assert shown(Section((Column(), Column()), rows)) == "a   1\nbb  100\n"
    assert shown(Section((), ())) == "\n"


def test_long_tables_look_as_short_ones(shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (("a", "1"), ("[bb]", "100"), ("\x1b[31m", "2"))
    for part in (Section(numbers("name", "number"), rows), Section((Column(), Column()), rows)):
        monkeypatch.setattr(console, "_LONG", 3)
        short = shown(part)
        monkeypatch.setattr(console, "_LONG", 2)
        assert shown(part) == short


def test_cells_that_are_too_long_are_cut_or_go_on_below(shown: Callable[..., str]) -> None:
    rows = (("a" * 12, "b" * 12),)
    assert shown(Section((Column(folds=True), Column()), rows), width=20) == "aaaa  bbbbbbbbbbbb\naaaa\naaaa\n"
    assert shown(Section((Column(), Column()), rows), width=20) == "aaaaaaa…  bbbbbbb…\n"


def test_numbers_are_whole_where_a_terminal_is_narrow(shown: Callable[..., str]) -> None:
    columns = (Column("way", folds=True), Column("loss", is_number=True), Column("perplexity", is_number=True))
    text = shown(Section(columns, (("aligned, refit", "2.4941", "12.11"),)), width=12)
    assert all(word in text for word in ("loss", "2.4941", "perplexity", "12.11"))


def test_nothing_that_is_shown_steers_the_terminal(
    shown: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    word = "o\x1b[2J\u202e"
    parts = (Facts(((NAME, word),)), Section((Column(),), ((word,),)), word, Paragraph(word))
    assert shown(*parts, is_terminal=True).count("o\\x1b[2J\\u202e") == len(parts)
    monkeypatch.setattr(console, "err", Console(stderr=True, highlight=False))
    console.print_note(word)
    console.print_error(word)
    assert "\x1b" not in capsys.readouterr().err


def test_bars_come_when_they_are_told_of_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, force_terminal=True, width=80, color_system=None))
    with console.bars("whole", console.Bars, "steps") as bars:
        assert [(task.description, task.total) for task in bars._shown.tasks] == [("whole", None)]
        bars.show("whole", 1, 4, "whole: first")
        bars.stage("other", 0, 3)
        assert [task.total for task in bars._shown.tasks] == [4, 3]
        bars.keep("whole")
        bars.stage("part", 3, 5)
        bars.stage("part", 1, 5)
        tasks = {task.description: (task.completed, task.total) for task in bars._shown.tasks}
        assert tasks == {"whole: first": (1, 4), "part": (4, 5)}
        bars.keep("whole")
        assert [task.description for task in bars._shown.tasks] == ["whole: first"]
    assert "whole: first" in file.getvalue()


def test_what_goes_on_stands_beside_the_command_while_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None))
    with console.bars("verify", console.Bars) as bars:

        def said() -> str:
            return bars._shown.tasks[0].description

        with pytest.raises(ZeroDivisionError), bars.under_way("loading"):
            assert said() == "verify: loading"
            raise ZeroDivisionError
        assert said() == "verify"
        bars.show("verify", 1, 2, "verify: second")
        with bars.under_way("loading"):
            assert said() == "verify: second: loading"
        assert said() == "verify: second"
        shown = [column.render(bars._shown.tasks[0]).plain for column in bars._shown.columns[2:]]
        assert shown[0].strip() == "50%"


def test_what_has_no_known_end_shows_the_time_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None))
    with console.bars("verify", console.Bars) as bars:
        bars.stage("part", 1, 2)
        whole, part = bars._shown.tasks
        times = bars._shown.columns[-1]
        assert (times.render(whole).plain, times.render(part).plain) == ("0:00:00", "-:--:--")


@pytest.mark.parametrize("unit", ["share", "bytes", "steps"])
def test_no_bars_where_nobody_sees_them(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with console.bars("whole", console.Bars, unit) as bars:
        bars.stage("part", 1, 2)
    assert capsys.readouterr() == ("", "")
