"""The command line as a whole: its version, and a verb that is a folder and a line."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mha2gqa.verbs
from mha2gqa.cli import VERBS, app, build

OPTIONS = '''
"""What can be asked of `greet`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from mha2gqa.options import Option, Options, at_least
from mha2gqa.verbs.options import AsJson, ConfigFile


@dataclass(frozen=True, kw_only=True)
class GreetOptions(Options):
    """Say hello.

    To somebody.
    """

    name: Annotated[str, Option("Who is greeted.", is_argument=True)]
    """Whom to greet."""
    times: Annotated[int, Option("How often.", parse=at_least(1), metavar="N", flags=("--times", "-n"))] = 1
    as_json: ClassVar[AsJson] = False
    config: ClassVar[ConfigFile] = None
'''
COMMAND = '''
"""`greet` on the command line."""

from mha2gqa import console
from mha2gqa.verbs.greet.options import GreetOptions


def command(options: GreetOptions, *, as_json: bool) -> int:
    """Greet, and fail if that was often."""
    said = [f"hello {options.name}"] * options.times
    console.print_json({"said": said}) if as_json else console.print_report(said)
    return 4 if options.times > 2 else 0
'''


@pytest.fixture
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app with one verb more."""
    folder = tmp_path / "greet"
    folder.mkdir()
    for name, content in (("__init__", '"""Greetings."""\n'), ("options", OPTIONS), ("command", COMMAND)):
        (folder / f"{name}.py").write_text(content)
        monkeypatch.delitem(sys.modules, "mha2gqa.verbs.greet" + f".{name}" * (name != "__init__"), raising=False)
    monkeypatch.setattr(mha2gqa.verbs, "__path__", [*mha2gqa.verbs.__path__, str(tmp_path)])
    return build((*VERBS, "greet"))


def test_a_new_verb_is_a_folder_and_a_line(greet: Any, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(greet, [*words])
        return result.exit_code, result.stdout or " ".join(result.stderr.split())

    assert "  greet    Say hello.\n" in run("--help")[1]
    code, text = run("greet", "--help")
    assert code == 0
    for seen in ("Say hello.", "Who is greeted.", "-n, --times N", "How often.  [default: 1]", "--json", "--config"):
        assert seen in text
    assert "To somebody." not in text
    assert run("greet", "you") == (0, "hello you\n")
    assert run("greet", "you", "-n", "3") == (4, "hello you\n" * 3)
    assert run("greet", "you", "--json")[1] == '{\n "said": [\n  "hello you"\n ]\n}\n'
    assert "Invalid value for '--times' / '-n': '0' is no number" in run("greet", "you", "-n", "0")[1]
    (tmp_path / "recipe.yaml").write_text("times: 2\nname: all\n")
    assert run("greet", "--config", str(tmp_path / "recipe.yaml")) == (0, "hello all\n" * 2)


def test_the_version(cli: Any) -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"mha2gqa {version('mha2gqa')}\n"
    answer = cli("--version")
    assert (answer.code, answer.out, answer.err) == (0, f"mha2gqa {version('mha2gqa')}\n", "")
