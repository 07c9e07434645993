"""The worked recipes of `configs/uptrain/`, and what of a recipe is taken, overridden, and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.verbs.uptrain.subjects import save_subject

RECIPES = sorted((Path(__file__).parents[3] / "configs/uptrain").glob("*.yaml"))


@pytest.fixture
def subject(tmp_path: Path) -> tuple[Path, Path]:
    return save_subject(tmp_path, max_position_embeddings=4096)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_plans_what_it_says(recipe: Path, subject: tuple[Path, Path], cli: Callable[..., Any]) -> None:
    content = yaml.safe_load(recipe.read_text())
    known = () if "pretraining_tokens" in content else ("--pretraining-tokens", "1B")
    answer = cli(
        *("uptrain", subject[0], "--data", subject[1], "--config", recipe, "--trainer", "use_cpu=true"),
        *("--dry-run", "--json", *known),
    )
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert (report["train"], report["objective"]) == (content["train"], content["objective"])
    length = report["length"]
    if "alpha" in content:
        assert length["alpha"] == pytest.approx(content["alpha"], rel=0.01)
    else:
        assert length["tokens"] == pytest.approx(int(content["tokens"].replace("M", "000000")), rel=0.01)
    for name, value in content["trainer"].items():
        assert report["recipe"]["trainer"][name] == value
    assert not report["written"]
    assert not (Path.cwd() / "converted-uptrained").exists()


def test_there_is_a_recipe_for_every_size_of_machine() -> None:
    assert {recipe.stem for recipe in RECIPES} == {"reference-cpu", "one-gpu", "one-node-8-gpus", "several-nodes"}
    for recipe in RECIPES:
        text = recipe.read_text()
        assert text.startswith("# ")
        assert f"--config configs/uptrain/{recipe.name}\n" in text
        assert all(len(line) <= 120 for line in text.splitlines())


def test_the_command_line_wins_over_the_recipe(subject: tuple[Path, Path], cli: Callable[..., Any]) -> None:
    Path("recipe.yaml").write_text("steps: 9\ntrain: all\ntrainer: {learning_rate: 1.0e-4, adam_beta2: 0.9}\n")
    base = ("uptrain", subject[0], "--data", subject[1], "--config", "recipe.yaml", "--dry-run", "--json")
    answer = cli(*base, "--train", "kv", "--trainer", "learning_rate=2e-3")
    report = json.loads(answer.out)
    assert (report["train"], report["length"]["steps"], report["learning_rate"]) == ("kv", 9, 2e-3)
    assert report["recipe"]["trainer"]["adam_beta2"] == 0.9


def test_a_saved_recipe_can_be_given_again(subject: tuple[Path, Path], cli: Callable[..., Any]) -> None:
    base = ("uptrain", subject[0], "--data", subject[1], "--context", 32, "--held-out-tokens", 100)
    first = cli(*base, "--steps", 2, "-o", "one", "--trainer", "per_device_train_batch_size=2", "--json")
    assert first.code == 0, first.err
    again = cli("uptrain", "--config", "one/uptrain.yaml", "-o", "two", "--json")
    assert again.code == 0, again.err
    reports = [json.loads(answer.out.splitlines()[-1]) for answer in (first, again)]
    assert reports[0]["losses"] == reports[1]["losses"]
    assert (Path("one/model.safetensors").read_bytes()) == Path("two/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"lerning_rate": 1.0}, ("lerning_rate", "Did you mean learning_rate?")),
        ({"max_steps": 5}, ("max_steps", "--steps")),
        ({"output_dir": "x"}, ("output_dir", "-o")),
        ({"lr_scheduler_type": "zigzag"}, ("transformers rejects", "zigzag")),
        ({"eval_strategy": "sometimes"}, ("transformers rejects", "sometimes")),
    ],
)
def test_what_is_no_setting_of_the_trainer_is_refused(
    trainer: dict[str, Any], says: tuple[str, ...], subject: tuple[Path, Path], refuse: Callable[..., None]
) -> None:
    recipe = subject[0].parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"trainer": trainer}))
    refuse("uptrain", subject[0], "--data", subject[1], "--steps", 2, "--config", recipe, says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("trainer: [1]\n", "recipe.yaml: `trainer` must map fields"),
        ("trainer: [seed]\n", "recipe.yaml: --trainer 'seed' is not of the form key=value"),
        ("steps: 3\nstep: 4\n", "must map these names"),
        ("[", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_wrong_usage(
    content: str, says: str, subject: tuple[Path, Path], cli: Callable[..., Any]
) -> None:
    Path("recipe.yaml").write_text(content)
    answer = cli("uptrain", subject[0], "--config", "recipe.yaml")
    assert answer.code == 2
    assert says in " ".join(answer.err.split())


@pytest.mark.parametrize("pair", ["learning_rate", "learning_rate=[", "=3"])
def test_a_pair_that_is_none_is_refused(pair: str, subject: tuple[Path, Path], cli: Callable[..., Any]) -> None:
    answer = cli("uptrain", subject[0], "--data", subject[1], "--steps", 1, "--trainer", pair, "--dry-run")
    assert answer.code in (1, 2)
    assert answer.err
