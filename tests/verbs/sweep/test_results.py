"""The frontier and the recommendation against plain definitions of them, the file, the division of texts, the page."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.errors import TextError
from mha2gqa.texts.documents import read_documents
from mha2gqa.verbs.sweep.outcome import LayerPoint, Measured, Point, Sweep, parse
from mha2gqa.verbs.sweep.page import sweep_page
from mha2gqa.verbs.sweep.store import read_results, write_results
from mha2gqa.verbs.sweep.texts import divide, split
from mha2gqa.verbs.sweep.words import verdict
from mha2gqa.verbs.verify.measures import ComparedText, Loss
from tests.pages.sample import HOSTILE
from tests.pages.test_page import Elements
from tests.texts.chats import turns, write_rows

ORIGINAL = 2.0


def measured(loss: float, interval: tuple[float, float] | None = (0.1, 0.3)) -> Measured:
    return Measured(loss=Loss(original=ORIGINAL, converted=loss, interval=interval), kl=0.25, top1=0.75)


def point(groups: int, loss: float, number: int = 0, **fields: Any) -> Point:
    given = {
        "name": f"model-{groups}-{number}",
        "groups": groups,
        "method": ("mean", "aligned")[number % 2],
        "refine": None,
        "cache": 64 * groups,
        "measured": measured(loss),
        "seconds": 1.5,
        "command": "mha2gqa convert",
    }
    return Point(**given | fields)


def report(points: list[Point], limit: float = 0.01, **fields: Any) -> Sweep:
    given = {
        "name": "model",
        "model": "org/model",
        "model_type": "llama",
        "heads": 16,
        "cache": 1024,
        "max_ppl_increase": limit,
        "text": ComparedText(description="a text", sampled=False, blocks=3, context=8, tokens=21),
        "dtype": "float32",
        "device": "cpu",
        "points": points,
        "layers": [LayerPoint(module="layer.0", groups=1, method="mean", measured=measured(2.5))],
        "settings": {"seed": 0, "data": ["text.txt"], "versions": {"torch": "2"}},
    }
    return Sweep(**given | fields)


def drawn(seed: int) -> Sweep:
    """A sweep over random losses; on a grid, so that some are equal."""
    draw = random.Random(seed)
    points = [
        point(groups, ORIGINAL + draw.randrange(12) / 100, number) for groups in (1, 2, 4, 8) for number in range(3)
    ]
    return report(draw.sample(points, len(points)), limit=draw.choice([0.0, 0.01, 0.03, 0.05, 0.2]))


@pytest.mark.parametrize("seed", range(40))
def test_the_recommendation_obeys_its_limit(seed: int) -> None:
    sweep = drawn(seed)
    allowed = [
        one for one in sweep.points if math.exp(one.measured.loss.converted - ORIGINAL) - 1 <= sweep.max_ppl_increase
    ]
    chosen = sweep.recommended
    if chosen is None:
        assert not allowed
        best = min(one.measured.loss.converted for one in sweep.points)
        assert sweep.nearest is not None
        assert sweep.nearest.measured.loss.converted == best
        assert verdict(sweep).startswith("No conversion")
        return
    assert chosen in allowed
    assert chosen.cache == min(one.cache for one in allowed)
    equal = [one for one in allowed if one.cache == chosen.cache]
    assert chosen.measured.loss.converted == min(one.measured.loss.converted for one in equal)
    assert f"Take G = {chosen.groups} by {chosen.way}" in verdict(sweep)


def test_both_answers_are_among_the_drawn() -> None:
    assert {drawn(seed).recommended is None for seed in range(40)} == {True, False}


@pytest.mark.parametrize("seed", range(40))
def test_nothing_beats_the_frontier_and_everything_else_is_beaten(seed: int) -> None:
    sweep = drawn(seed)
    places = {(one.cache, one.measured.loss.converted) for one in sweep.points}
    best = {
        (cache, loss)
        for cache, loss in places
        if not any(c <= cache and other <= loss and (c, other) != (cache, loss) for c, other in places)
    }
    found = [(one.cache, one.measured.loss.converted) for one in sweep.frontier]
    assert set(found) == best
    assert len(found) == len(best)
    assert found == sorted(found, reverse=True)


def test_a_loss_that_is_no_number_is_never_recommended(tmp_path: Path) -> None:
    broken = report([point(1, math.nan), point(2, 2.5, 1)], limit=100.0)
    write_results(tmp_path / "sweep.json", broken)
    assert json.loads((tmp_path / "sweep.json").read_text())["points"][0]["measured"]["loss"]["converted"] is None
    found = read_results(tmp_path / "sweep.json", broken.settings, force=False)
    assert found is not None
    for sweep in (broken, found):
        assert [one.groups for one in sweep.frontier] == [2]
        assert sweep.recommended is not None
        assert sweep.recommended.groups == 2
        assert "<svg" in sweep_page(sweep)


def test_a_report_comes_back_from_its_json() -> None:
    points = [point(4, 2.01), point(1, 2.5, refine="refit", measured=measured(2.5, None))]
    sweep = report(points, limit=0.02)
    again = parse(json.loads(json.dumps(sweep.to_json())))
    assert again == sweep
    assert sweep.to_json()["recommended"] == "model-4-0"
    assert sweep.to_json()["points"][0]["measured"]["loss"]["increase"] == pytest.approx(math.expm1(0.01))


@pytest.mark.parametrize("seed", range(20))
def test_a_text_is_divided_and_nothing_is_lost_or_doubled(seed: int) -> None:
    draw = random.Random(seed)
    lines = iter(range(10**6))
    documents = [
        "".join(f"line {next(lines)}\n" for _ in range(draw.choice([1, 3, 400])))
        for _ in range(draw.choice([1, 2, 30]))
    ]
    first, rest = split(documents)
    assert "".join(first + rest) == "".join(documents)
    assert not {*"".join(first).splitlines()} & {*"".join(rest).splitlines()}
    share = len("".join(first)) / len("".join(documents))
    assert 0.15 < share < 0.41 or len("".join(documents)) < 100
    assert first
    assert rest or len(documents) == 1


def test_a_text_without_lines_is_divided_too() -> None:
    first, rest = split(["x" * 1000])
    assert (len(first[0]), len(rest[0])) == (200, 800)


def test_conversations_are_divided_whole_and_read_again_as_they_were(tmp_path: Path) -> None:
    rows = [{"messages": turns(f"Q{number}", f"A{number}")} for number in range(10)]
    path = write_rows(tmp_path / "chat.jsonl", *rows, {"text": "SOME TEXT\n" * 9})
    (calibration,), (evaluation,) = divide((path,), None, 1000, tmp_path / "divided")
    parts = [list(read_documents([name])) for name in (evaluation, calibration)]
    assert parts[0] + parts[1] == list(read_documents([path]))
    assert [len(part) for part in parts] == [3, 8]


def test_no_text_cannot_be_divided() -> None:
    with pytest.raises(TextError, match="no text"):
        split([])


def test_the_page_is_the_same_for_the_same_report_and_refers_to_nothing() -> None:
    page = sweep_page(drawn(1))
    assert page == sweep_page(drawn(1))
    links = [value for name, value in Elements(page).attributes if name.endswith(("href", "src"))]
    assert all(str(value).startswith(("#", "data:")) for value in links), links
    assert "script" not in Elements(page).tags


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_page_shows_strings_and_makes_no_elements_of_them() -> None:
    points = [dataclasses.replace(one, command=HOSTILE, method=HOSTILE) for one in drawn(3).points]
    layers = [LayerPoint(module=HOSTILE, groups=1, method=HOSTILE, measured=measured(2.5))]
    text = ComparedText(description=HOSTILE, sampled=False, blocks=1, context=2, tokens=1)
    fields = {"name": HOSTILE, "model": HOSTILE, "model_type": HOSTILE, "settings": {HOSTILE: HOSTILE}, "text": text}
    poisoned = Elements(sweep_page(report(points, limit=1.0, layers=layers, **fields)))
    plain = Elements(sweep_page(report([*drawn(3).points], limit=1.0)))
    assert set(poisoned.tags) == set(plain.tags)
    assert not any(name.startswith("on") for name, _ in poisoned.attributes)
