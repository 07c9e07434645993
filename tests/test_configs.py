"""The worked recipes of `configs/`: each loads through the command line, and says what it is for.

The models that they name are not downloaded; a tiny one with as many KV heads as any of them needs stands in.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from mha2gqa.cli import app
from mha2gqa.errors import TimingError
from mha2gqa.files.source import HUB_ID
from mha2gqa.verbs.bench.asked import SHAPES
from tests.families.tiny import save_tiny

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted((CONFIGS / "convert").glob("*.yaml"))
BENCH_RECIPES = sorted((CONFIGS / "bench").glob("*.yaml"))


def convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of 8 KV heads, and an empty working directory."""
    save_tiny("llama", tmp_path / "model", hidden_size=128, num_attention_heads=8, num_key_value_heads=8)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "model"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_plans_what_it_says(recipe: Path, model: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(recipe.read_text())
    result = convert(model, "--config", recipe, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["heads_before"], report["heads_after"]) == (8, content["groups"])
    assert report["method"] == content["method"]
    assert report["output"] == content.get("output", "model-mqa")
    assert not report["written"]
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_explained_and_names_a_model_that_can_exist(recipe: Path) -> None:
    text = recipe.read_text()
    assert text.startswith("# ")
    assert f"mha2gqa convert --config configs/convert/{recipe.name}\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    named = yaml.safe_load(text).get("model")
    assert named is None or HUB_ID.fullmatch(named)


@pytest.mark.parametrize("recipe", BENCH_RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_of_bench_is_explained_and_gets_as_far_as_its_memory(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"mha2gqa bench --config configs/bench/{recipe.name}\n" in recipe.read_text()
    monkeypatch.setattr("mha2gqa.verbs.bench.run.free_memory", lambda device: 0)
    result = CliRunner().invoke(app, ["bench", "--config", str(recipe), "--device", "cpu"])
    assert isinstance(result.exception, TimingError)
    longest = max(_numbers(recipe, "context"))
    assert str(result.exception).startswith(f"Batch {max(_numbers(recipe, 'batch'))} at context {longest} does not fit")


def _numbers(recipe: Path, key: str) -> list[int]:
    return [int(one) for one in yaml.safe_load(recipe.read_text())[key].split(",")]


def test_the_shapes_are_those_of_the_package() -> None:
    assert (CONFIGS / "shapes").resolve() == SHAPES
    assert len(BENCH_RECIPES) == 3


def test_there_are_recipes() -> None:
    assert {"aligned-distil", "llama-2-7b-gqa8", "mqa", "reference"} <= {recipe.stem for recipe in RECIPES}


def test_the_command_line_wins_over_the_file(model: Path) -> None:
    result = convert(model, "--config", RECIPES[0], "--groups", 4, "--method", "first", "--dry-run", "--json")
    report = json.loads(result.stdout)
    assert (report["heads_after"], report["method"]) == (4, "first")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("groups: 4\ngorups: 2\n", "must map these names"),
        ("- groups\n", "must map these names"),
        ("", "must map these names"),
        ("groups: [\n", "cannot be read"),
        ("groups: four\n", "--groups"),
        ("groups: 4\nmethod: median\n", "median"),
    ],
)
def test_a_file_that_is_no_recipe_is_wrong_usage(content: str, problem: str, model: Path) -> None:
    Path("recipe.yaml").write_text(content)
    result = convert(model, "--config", "recipe.yaml", "--dry-run")
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())


def test_a_recipe_that_is_missing_or_binary_is_wrong_usage(model: Path) -> None:
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "binary.yaml"):
        result = convert(model, "--config", name)
        assert (result.exit_code, f"{name} cannot be read" in " ".join(result.stderr.split())) == (2, True)
