"""The documents: tables are what the code says, and commands what the command line takes; those of a page run.

A command whose comment names the Hub, a GPU or a minute, or says "read only", is read by the command line, and not run.
"""

import re
import shlex
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from make_docs_tables import DOCS, pages
from typer.testing import CliRunner

from mha2gqa.cli import VERBS, app
from tests.conftest import Run

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN = [ROOT / "README.md", DOCS / "quickstart.md", *sorted((DOCS / "commands").glob("*.md"))]
COMMAND = re.compile(rf"mha2gqa ((?:{'|'.join(VERBS)})\b[^&]*)")
OURS = re.compile(r"mha2gqa ")
SHELL = re.compile(r"(\$ |torchrun .* -m )?mha2gqa ")
ELSEWHERE = re.compile(r"Hub|GPU|minute|read only")


def code(page: Path) -> Iterator[list[str]]:
    """Yield the blocks of a page that are code, which blank lines do not end: their lines, each in one piece."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for block in re.findall(r"^```.*?\n(.*?)^```|^((?:    [^\n]+\n+)+)", text, re.MULTILINE | re.DOTALL):
        yield [line.strip() for line in "".join(block).splitlines()]


def commands(page: Path, *, transcripts: bool) -> list[tuple[list[str], str]]:
    """Return the words of each command of a page, and its comment; usage lines, with brackets, are none."""
    found = []
    for block in code(page):
        is_transcript = block[0].startswith("$ ")  # the rest of it is what was printed, which may name commands, too
        for said, _, comment in (line.partition(" #") for line in block if transcripts or not is_transcript):
            if "[" not in said and (SHELL if transcripts else OURS).match(said):
                found += [(shlex.split(one), comment) for one in COMMAND.findall(said)]
    return found


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("path", pages())
def test_tables_are_what_the_code_says(path: str) -> None:
    assert (DOCS / path).read_text(encoding="utf-8") == pages()[path], "run `python -m scripts.make_docs_tables`"


def test_the_readme_is_read_in_a_minute() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


def test_links_of_the_readme_lead_somewhere() -> None:
    found = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) > 20
    assert not [link for link in found if not (ROOT / link).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, transcripts=True)], ids=named)
def test_the_command_line_takes_every_command(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words, _ in commands(page, transcripts=True):
        stub = types.SimpleNamespace(command=lambda options, **extras: 0)
        monkeypatch.setitem(sys.modules, f"mha2gqa.verbs.{words[0]}.command", stub)
        early = types.SimpleNamespace(check=lambda options: None)  # what the page names is not here
        monkeypatch.setitem(sys.modules, f"mha2gqa.verbs.{words[0]}.early", early)
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize("page", [page for page in RUN if commands(page, transcripts=False)], ids=named)
def test_the_commands_of_a_page_run(page: Path, cli: Callable[..., Run], tmp_path: Path) -> None:
    for words, comment in commands(page, transcripts=False):
        if ELSEWHERE.search(comment):
            continue
        answer = cli(*words)
        assert answer.code in ((0, 3) if words[0] == "verify" else (0,)), (words, answer.err)
        assert answer.out
    if "from_pretrained" in page.read_text():
        scope: dict[str, Any] = {}
        exec("\n".join(_python(page)), scope)  # noqa: S102 (it is our own page)
        assert scope["model"].config.num_key_value_heads == 4


def _python(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
