"""`benchmarks/gpu.py` in miniature on the CPU: every part finds what the tables show, and no failure ends the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu
import pytest
from gpu import PARTS, Part, Setup


def here(name: str, setup: Setup, seconds: float) -> None:
    gpu.do(name, setup)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gpu")
    return gpu.run_all(Setup("cpu", folder, miniature=True), folder / "all.json", 8, here)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs(known: dict[str, Any], name: str) -> None:
    found = known["parts"][name]
    assert "failed" not in found, found["failed"]
    assert len(found) > 1


def test_the_tables_show_what_was_found(known: dict[str, Any]) -> None:
    text = gpu.format_tables(known)
    assert text.count("| 2 | 32 |") == sum("report" in one for one in known["parts"].values()) >= 4
    for words in ("refit of values and outputs", "bfloat16, FLOP/s", "| distil, attention |", "| cpu | 0."):
        assert words in text
    layers, tokens = known["parts"]["agreement"]["cpu"]["layers"], known["parts"]["uptrain, lm, all"]["tokens"]
    assert len(layers) == 4
    assert all(0 < errors["distil"] <= errors["merged"] for errors in layers.values())
    assert tokens == 32
    assert known["parts"]["uptrain, lm, all"]["parameters"] > 500_000


def slow(setup: Setup) -> Iterator[tuple[str, Any]]:
    yield "first", 1.0
    raise RuntimeError("a bad day")


def test_what_fails_keeps_what_it_had_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"one": Part(9, slow), "two": Part(9, lambda setup: iter([("second", 2.0)])), "three": Part(10**6, slow)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    setup, results = Setup("cpu", tmp_path), tmp_path / "all.json"
    gpu.run_all(setup, results, 1, here)
    kept = json.loads(results.read_text())["parts"]
    assert kept["one"]["first"] == 1.0
    assert "RuntimeError: a bad day" in kept["one"]["failed"]
    assert kept["two"]["second"] == 2.0
    asked: list[str] = []
    found = gpu.run_all(setup, results, 1, lambda name, setup, seconds: asked.append(name))
    assert asked == ["one"]
    assert found["parts"]["three"] == {"failed": "no time was left"}


def test_a_part_is_killed_when_its_time_is_over_and_is_told_of(tmp_path: Path) -> None:
    setup = Setup("cpu", tmp_path, miniature=True)
    gpu.in_a_process("rates", setup, 0.01)
    assert json.loads((tmp_path / "rates.json").read_text()) == {"failed": "more than 0 s"}
    gpu.in_a_process("no such part", setup, 600)
    assert "KeyError" in json.loads((tmp_path / "no such part.json").read_text())["failed"]
