"""An option is one thing: the command line, a YAML file and Python give equal options, and refuse the same values."""

import dataclasses
import math
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from mha2gqa import BenchOptions, ConvertOptions, SweepOptions, UptrainOptions, VerifyOptions
from mha2gqa.cli import VERBS, app
from mha2gqa.errors import OptionError
from mha2gqa.options import Options, Parameter, parameters

CLASSES: dict[str, type[Options]] = {
    verb: getattr(import_module(f"mha2gqa.verbs.{verb}.options"), f"{verb.capitalize()}Options") for verb in VERBS
}
REQUIRED: dict[str, dict[str, Any]] = {
    "convert": {"groups": 4},
    "expand": {"model": "here", "output": Path("there")},
    "export": {"push_to_hub": "org/name"},
}
INSTEAD: dict[str, dict[str, Any]] = {
    "latent": {},
    "latent_like_groups": {},
    "rope_width": {"latent": 8},
    "rope_frequencies": {"latent": 8},
}
"""What `convert` needs beside an option that does not go with what it needs otherwise."""
SAMPLES: dict[tuple[str, str], tuple[str, Any]] = {
    ("bench", "batch"): ("2,3", (2, 3)),
    ("bench", "cache"): ("static", ("static",)),
    ("bench", "context"): ("16, 8", (16, 8)),
    ("convert", "attention"): ("self,encoder", ("self", "encoder")),
    ("convert", "groups"): ("self=2,cross=1", {"decoder": 2, "cross": 1}),
    ("bench", "engine"): ("vllm", "vllm"),
    ("convert", "method"): ("first", "first"),
    ("verify", "engine"): ("vllm", "vllm"),
    ("convert", "window_layers"): ("0,1,2,5", "0-2,5"),
    ("sweep", "groups"): ("8,2", (8, 2)),
    ("sweep", "methods"): ("first", ("first",)),
    ("sweep", "refine"): ("none,refit", (None, "refit")),
    ("uptrain", "trainer"): ("learning_rate=1e-3", {"learning_rate": 1e-3}),
    ("verify", "tasks"): ("piqa, arc_easy", ("piqa", "arc_easy")),
}
SAMPLES |= {(verb, "push_to_hub"): ("org/other", "org/other") for verb in ("convert", "export", "uptrain")}
"""What a parser makes of a text; of other options their types say it."""
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("verify", "task_path"): {"tasks": ("piqa",)},
    ("convert", "window_layers"): {"window": 8},
    ("convert", "cache"): {"groups": "auto"},
    ("convert", "private"): {"push_to_hub": "org/name"},
    ("uptrain", "private"): {"push_to_hub": "org/name"},
}
"""Options that one goes with."""


def sample(verb: str, one: Parameter) -> tuple[str, Any]:
    """Return a text that is not the default, and the value that it means."""
    if one.choices:
        name = next(name for name in reversed(one.choices) if name != one.default)
        return name, (name,) if one.is_sequence else name
    if one.option.is_repeatable and not one.option.parse:
        return "some.txt", ("some.txt",)
    by_type = {
        bool: ("", not one.default),
        int: ("3K", 3000) if one.option.parse else ("7", 7),
        float: ("3%", 0.03) if one.option.parse else ("0.25", 0.25),
        Path: ("some/where", Path("some/where")),
        str: ("float16", "float16") if one.name == "dtype" else ("word", "word"),
    }
    if (verb, one.name) in SAMPLES:
        return SAMPLES[verb, one.name]
    (kind,) = set(getattr(one.hint, "__args__", [one.hint])) & by_type.keys() or [None]
    return by_type[kind]


def flag(one: Parameter) -> str:
    """Return how an option is written."""
    return (
        ""
        if one.option.is_argument
        else (one.option.flags or (f"--{one.name.replace('_', '-')}",))[0].partition("/")[0]
    )


def line(one: Parameter, text: str) -> list[str]:
    """Return an option with its value on the command line."""
    if isinstance(one.default, bool):
        return [flag(one).replace("--", "--no-") if one.default else flag(one)]
    return list(filter(None, [flag(one), text]))


FIELDS = [(verb, name) for verb, cls in CLASSES.items() for name, one in parameters(cls).items() if one.is_field]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Options, dict[str, Any]]]:
    """Return what the command line makes of its words, and the extras beside it."""
    monkeypatch.chdir(tmp_path)

    def run(verb: str, *words: str) -> tuple[Options, dict[str, Any]]:
        got: list[Any] = []
        stub = types.SimpleNamespace(command=lambda options, **extras: got.extend((options, extras)))
        monkeypatch.setitem(sys.modules, f"mha2gqa.verbs.{verb}.command", stub)
        early = types.SimpleNamespace(check=lambda options: None)  # of what is named here, nothing is there
        monkeypatch.setitem(sys.modules, f"mha2gqa.verbs.{verb}.early", early)
        result = CliRunner().invoke(app, [verb, *words])
        assert result.exit_code == 0, result.output
        return got[0], got[1]

    return run


def needed(verb: str, beside: str = "") -> dict[str, Any]:
    """Return what a verb needs, beside an option or alone."""
    found = INSTEAD.get(beside) if verb == "convert" else None
    return REQUIRED.get(verb, {}) if found is None else found


def required(verb: str, but: str = "") -> list[str]:
    known = parameters(CLASSES[verb])
    given = {name: str(value) for name, value in needed(verb, but).items() if name != but}
    return [word for name, text in given.items() for word in line(known[name], text)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_dataclass_is_one_of_the_command_line_and_the_other_way_round(verb: str) -> None:
    known = parameters(CLASSES[verb])
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert [parameter.name for parameter in command.params if parameter.name != "help"] == list(known)
    fields = {field.name: field for field in dataclasses.fields(CLASSES[verb])}
    assert fields.keys() <= known.keys()
    assert {name for name, one in known.items() if one.default is MISSING} <= REQUIRED.get(verb, {}).keys()
    assert all(one.option.help.endswith(".") or "`" in one.option.help for one in known.values())


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_given_has_the_default_of_the_dataclass(verb: str, given: Callable[..., Any]) -> None:
    options, extras = given(verb, *required(verb))
    assert options == CLASSES[verb](**REQUIRED.get(verb, {}))
    assert not any(extras.values())


@pytest.mark.parametrize(("verb", "name"), FIELDS)
def test_the_three_ways_to_give_an_option_are_one(
    verb: str, name: str, given: Callable[..., Any], tmp_path: Path
) -> None:
    one = parameters(CLASSES[verb])[name]
    text, value = sample(verb, one)
    others: Mapping[str, Any] = BESIDE.get((verb, name), {})
    texts = {other: held[0] if isinstance(held, tuple) else str(held) for other, held in others.items()}
    words = [word for other, beside in texts.items() for word in (f"--{other.replace('_', '-')}", beside)]
    python = CLASSES[verb](**{**needed(verb, name), **others, name: value})
    assert python != CLASSES[verb](**{**REQUIRED.get(verb, {}), **others})
    assert given(verb, *required(verb, but=name), *words, *line(one, text))[0] == python
    if "config" in parameters(CLASSES[verb]):
        content = {name: value if isinstance(value, bool | dict) else [text] if one.option.is_repeatable else text}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        assert given(verb, *required(verb, but=name), *words, "--config", "recipe.yaml")[0] == python


def test_a_mapping_of_a_file_gets_the_entries_of_the_command_line(given: Callable[..., Any]) -> None:
    Path("recipe.yaml").write_text("trainer: {learning_rate: 1.0, warmup_steps: 3}\n")
    options, _ = given("uptrain", "--config", "recipe.yaml", "--trainer", "learning_rate=2", "--trainer", "seed=1e3")
    assert options.trainer == {"learning_rate": 2, "warmup_steps": 3, "seed": 1000.0}


def test_what_only_the_command_line_has_goes_beside_the_options(given: Callable[..., Any]) -> None:
    Path("recipe.yaml").write_text("as_json: true\n")
    for words in (("--json",), ("--config", "recipe.yaml")):
        assert given("convert", "-g", "2", *words) == (ConvertOptions(groups=2), {"as_json": True})
    assert given("demo") == (CLASSES["demo"](), {})


def test_sequences_of_any_kind_become_tuples() -> None:
    assert ConvertOptions(groups=2, data=["a", "b"]).data == ("a", "b")
    assert ConvertOptions(groups=2, data="a").data == ("a",)
    assert BenchOptions(batch=[2]).batch == (2,)


def test_paths_and_texts_stand_for_each_other() -> None:
    python = ConvertOptions(model=Path("here"), groups=2, output="there", data=Path("a.txt"))
    assert python == ConvertOptions(model="here", groups=2, output=Path("there"), data=("a.txt",))
    assert ConvertOptions(groups=2, data=[Path("a.txt")]).data == ("a.txt",)
    assert (UptrainOptions(tokens=20_000).tokens, UptrainOptions(alpha=1).alpha) == ("20000", 1.0)


@pytest.mark.parametrize(("verb", "name"), FIELDS)
def test_no_value_of_another_kind_gets_through(verb: str, name: str) -> None:
    kinds = (str, int, float, Path, Mapping, type(None))
    for value in (object(), b"x", [None], [[1]], {1: 2}, Path("p"), [Path("p")], 10**30):
        try:
            options = CLASSES[verb](**{**needed(verb, name), name: value})
        except OptionError:
            continue
        got = getattr(options, name)
        assert all(isinstance(one, kinds) for one in (got if isinstance(got, tuple) else [got]))


def test_kinds_of_attention_are_named_in_the_groups() -> None:
    options = ConvertOptions(groups=4, attention=("self", "encoder"))
    assert options.groups == {"decoder": 4, "encoder": 4}
    assert dataclasses.replace(options, seed=1).groups == options.groups


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ConvertOptions(groups=4, tokens=1), "tokens: 1 is less than 2"),
        (lambda: ConvertOptions(groups=4, steps=0), "steps: 0 is less than 1"),
        (lambda: ConvertOptions(groups=4, steps="9"), "steps: '9' is not a whole number"),
        (lambda: ConvertOptions(groups=4, force=1), "force: 1 is not true or false"),
        (lambda: ConvertOptions(groups=4, data=(None,)), "data: None is not a text"),
        (lambda: ConvertOptions(groups=4, output=3), "output: 3 is not a path"),
        (lambda: VerifyOptions(max_kl=math.nan), "max_kl: nan is not a number"),
        (lambda: ConvertOptions(groups=4, method="median"), "method: 'median' is not one of mean, first"),
        (lambda: ConvertOptions(groups=4, grouping="far"), "grouping: 'far' is not one of contiguous, similar"),
        (lambda: ConvertOptions(groups={"decodre": 4}), "groups: 'decodre' is no kind of attention"),
        (lambda: ConvertOptions(groups={"cross": 4}, attention=("self",)), "--attention does not go with"),
        (lambda: ConvertOptions(groups=4, attention=("slef",)), "attention: 'slef' is no kind of attention"),
        (lambda: BenchOptions(batch=(0,)), "batch: .* is no list of positive whole numbers"),
        (lambda: SweepOptions(refine=("no",)), "--refine 'no' is not one of none, refit"),
        (lambda: UptrainOptions(trainer=["a"]), "--trainer 'a' is not of the form key=value"),
        (lambda: UptrainOptions(trainer=3), "trainer: must map fields"),
        (lambda: VerifyOptions(levels=("files",)), "levels: 'files' is not one of file, load, outputs"),
        (lambda: VerifyOptions(min_cosine=2.0), "min_cosine: 2.0 is more than 1"),
        (lambda: VerifyOptions(max_kl=-1.0), "max_kl: -1.0 is less than 0"),
        (lambda: VerifyOptions(task_path=Path()), "--tasks needs the name of a benchmark"),
    ],
)
def test_python_is_refused_what_the_command_line_is(make: Callable[[], Options], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()
