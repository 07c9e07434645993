"""What is known of the original is asked for once: one command builds each class once, and makes one plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.families import blueprint, outlines
from mha2gqa.families.built import build
from mha2gqa.model.original import Original
from mha2gqa.targets import plan as planning
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.verbs.convert import run as converting
from mha2gqa.verbs.expand import run as expanding
from mha2gqa.verbs.verify import expectation
from tests.families.tiny import save_tiny

Run = Callable[..., Any]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[planning.Plan]:
    """Every plan that is made from here on."""
    made: list[planning.Plan] = []

    def make_plan(*arguments: Any) -> planning.Plan:
        made.append(planning.make_plan(*arguments))
        return made[-1]

    for module in (converting, expanding, expectation):
        monkeypatch.setattr(module, "make_plan", make_plan)
    return made


def built(cli: Run, *arguments: object) -> int:
    """How many model classes one command builds."""
    build.cache_clear()
    answer = cli(*arguments)
    assert answer.code == 0, answer.err
    return build.cache_info().misses


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of families, so that transformers is asked for all."""
    monkeypatch.setattr(outlines, "data_of", lambda model_type: None)
    blueprint._find.cache_clear()


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize("options", ["--method mean", "--method aligned --data none", "--grouping similar"])
def test_convert_builds_the_class_of_the_original_and_of_the_result(
    options: str, tmp_path: Path, cli: Run, plans: list[planning.Plan]
) -> None:
    save_tiny("llama", tmp_path / "source")
    assert built(cli, "convert", "source", "-g", 2, "-o", "out", *options.split()) == 2
    assert len(plans) == 1


def test_layers_ask_for_the_class_of_the_original_alone(tmp_path: Path, cli: Run) -> None:
    save_tiny("llama", tmp_path / "source")
    blueprint._find.cache_clear()
    assert built(cli, "convert", "source", "-g", 2, "-o", "out") == 0
    assert built(cli, "convert", "source", "-g", 2, "-o", "aligned", "--method", "aligned") == 1


def test_verify_asks_for_both_classes_and_expand_for_none(tmp_path: Path, cli: Run, plans: list[planning.Plan]) -> None:
    save_tiny("llama", tmp_path / "source")
    assert cli("convert", "source", "-g", 2, "-o", "out").code == 0
    plans.clear()
    assert built(cli, "verify", "out", "--level", "file") == 2
    assert built(cli, "expand", "out", "-o", "wide") == 0
    assert len(plans) == 2


@pytest.mark.usefixtures("without_data")
def test_a_host_is_one_class_more(tmp_path: Path, cli: Run, plans: list[planning.Plan]) -> None:
    save_tiny("gptj", tmp_path / "source")
    assert built(cli, "convert", "source", "-g", 2, "-o", "out") == 3
    assert len(plans) == 1


@pytest.mark.usefixtures("without_data")
def test_the_result_knows_its_cache_without_another_class(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source")
    build.cache_clear()
    target = KvHeads(1)
    plan = planning.make_plan(Original.at(tmp_path / "source"), target)
    before, after = plan.cache
    assert (before, after) == (4 * after, after)
    assert build.cache_info().misses == 2
