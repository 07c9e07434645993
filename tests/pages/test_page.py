"""The page as a file: deterministic, complete or not, safe against text from outside, refused where it cannot be."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.errors import OutputError, visible
from mha2gqa.pages.page import check_place, write_page
from mha2gqa.verbs.verify.outcome import Similarity, Verification
from mha2gqa.verbs.verify.page import verify_page
from tests.pages.sample import GROUPS, HOSTILE, hostile, verification


class Elements(HTMLParser):
    """Counts the elements of a page and collects its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_same_report_makes_the_same_bytes() -> None:
    assert verify_page(verification()) == verify_page(verification())


def test_nothing_is_referred_to_outside_the_page() -> None:
    links = [
        value for name, value in Elements(verify_page(verification())).attributes if name.endswith(("href", "src"))
    ]
    assert all(str(value).startswith(("#", "data:")) for value in links), links
    assert not re.search(r"@import|url\((?!#)", verify_page(verification()))


def test_every_string_is_shown_and_none_becomes_an_element() -> None:
    plain, poisoned = Elements(verify_page(verification())), Elements(verify_page(hostile()))
    assert not {"script", "img", "iframe"} & set(poisoned.tags)
    assert set(plain.tags) - {"mark"} == set(poisoned.tags), "only there both models write the same"
    shown = "".join(poisoned.text)
    assert shown.count(visible(HOSTILE)) >= 30
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert not any(name.startswith("on") for name, _ in poisoned.attributes)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\r\x7f\x85", "\\x00\\x0d\\x7f\\x85"),
        ("\u202eevil\u2069", "\\u202eevil\\u2069"),
        ("\ud800", "\\ud800"),
        ("naïve 漢字 👩\u200d🔬", "naïve 漢字 👩\u200d🔬"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_a_lone_surrogate_in_a_name_can_be_written(tmp_path: Path) -> None:
    one = Similarity(module="layer\ud800", values=((1.0, 0.5), (0.5, 1.0)), groups=((0, 1),))
    assert write_page(tmp_path, verify_page(verification(similarity=(one,)))).is_file()


@pytest.mark.parametrize(("verdict", "tone"), [("identical", "good"), ("within limits", "good"), ("different", "bad")])
def test_the_verdict_comes_first(verdict: str, tone: str) -> None:
    page = verify_page(verification(verdict=verdict))
    head = page[page.index("<h1>") : page.index("</h1>")]
    assert verdict.capitalize() in head
    assert f'class="{tone}"' in head


def without(report: Verification, **parts: Any) -> Verification:
    assert report.outputs is not None
    return dataclasses.replace(report, outputs=dataclasses.replace(report.outputs, **parts))


@pytest.mark.parametrize(
    "report",
    [
        verification(file=None),
        verification(load=None, outputs=None, similarity=(), benchmarks=()),
        verification(file=None, load=None, outputs=None, similarity=(), benchmarks=(), reasons=()),
        without(verification(), loss=None, positions=(), continuations=(), layers=()),
        verification(benchmarks=(dataclasses.replace(verification().benchmarks[0], samples=None, shots=None),)),
    ],
)
def test_what_was_not_measured_is_left_out(report: Verification) -> None:
    page = verify_page(report)
    assert page.count("not run") == [report.file, report.load, report.outputs].count(None)
    for heading, part in (("Outputs", report.outputs), ("Load checks", report.load), ("Benchmarks", report.benchmarks)):
        assert (f"<h2>{heading}</h2>" in page) == bool(part)
    assert ">None<" not in page
    assert "<tbody>\n</tbody>" not in page


def test_a_report_without_any_difference_has_no_empty_plots() -> None:
    report = verification(verdict="identical")
    assert report.outputs is not None
    kl = dataclasses.replace(report.outputs.kl, mean=0.0, p99=0.0, largest=0.0)
    layers = tuple(dataclasses.replace(layer, error=0.0) for layer in report.outputs.layers)
    page = verify_page(without(report, kl=kl, layers=layers, top1=1.0, findings=()))
    assert "Error by layer" not in page
    assert "KL divergence of the next token" not in page
    assert "Loss by position" in page
    assert "100%" in page


@pytest.mark.parametrize(
    ("agreed", "note"),
    [
        (0, "They differ from the first token on."),
        (6, "The first 6 of 24 tokens are the same."),
        (24, "All 24 tokens are the same."),
    ],
)
def test_a_continuation_says_how_far_both_agree(agreed: int, note: str) -> None:
    report = verification()
    assert report.outputs is not None
    (one,) = report.outputs.continuations
    assert note in verify_page(without(report, continuations=(dataclasses.replace(one, agreed=agreed),)))


def test_almost_all_is_not_shown_as_all() -> None:
    page = verify_page(without(verification(), top1=0.999999))
    assert "99.99%" in page
    assert "100.00%" not in page


def test_numbers_that_are_not_finite_are_shown_as_they_are() -> None:
    report = verification()
    assert report.outputs is not None
    assert report.outputs.loss is not None
    loss = dataclasses.replace(report.outputs.loss, converted=math.inf, interval=None)
    assert "inf" in verify_page(without(report, loss=loss))


def test_a_model_that_computes_nothing_but_nan_gets_a_page() -> None:
    report = verification()
    assert report.outputs is not None
    assert report.outputs.loss is not None
    nan = math.nan
    kl = dataclasses.replace(report.outputs.kl, mean=nan, p99=nan, largest=nan, counts=(0,) * 40)
    layers = tuple(dataclasses.replace(layer, error=nan) for layer in report.outputs.layers)
    positions = tuple(dataclasses.replace(one, converted=nan) for one in report.outputs.positions)
    loss = dataclasses.replace(report.outputs.loss, converted=nan, interval=(nan, nan))
    page = verify_page(without(report, kl=kl, layers=layers, positions=positions, loss=loss, top1=0.0))
    assert page.count("nan") > 3
    assert "KL divergence of the next token" not in page


def test_an_expansion_and_hundreds_of_heads_can_be_drawn() -> None:
    heads = 64
    values = tuple(tuple(1.0 if a == b else 0.1 for a in range(heads)) for b in range(heads))
    groups = tuple(tuple(range(start, start + 8)) for start in range(0, heads, 8))
    page = verify_page(verification(similarity=(Similarity(module="wide", values=values, groups=groups),)))
    assert page.count("<h2>Similarity of heads</h2>") == 1


def test_the_groups_on_the_map_are_those_of_the_report() -> None:
    permuted = ((0, 5), (1, 4), (2, 7), (3, 6))
    pages = []
    for groups in (GROUPS, permuted):
        (first, *_) = verification().similarity
        page = verify_page(verification(similarity=(dataclasses.replace(first, groups=groups),)))
        pages.append(re.findall(r'aria-label="Similarity[^"]*"', page))
    assert pages[0] == [
        'aria-label="Similarity of the KV heads of model.layers.0.self_attn, by group: 0 1; 2 3; 4 5; 6 7."'
    ]
    assert pages[1] == [
        'aria-label="Similarity of the KV heads of model.layers.0.self_attn, by group: 0 5; 1 4; 2 7; 3 6."'
    ]


def test_a_page_replaces_an_earlier_one_and_makes_its_directory(tmp_path: Path) -> None:
    for content in ("one", "two"):
        assert write_page(tmp_path / "new/page", content).read_text() == content
    assert [path.name for path in (tmp_path / "new/page").iterdir()] == ["report.html"]


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken/report.html").mkdir(parents=True)
    for place in (tmp_path / "file", tmp_path / "file/below", tmp_path / "taken"):
        with pytest.raises(OutputError, match="cannot be written into"):
            check_place(place)
        with pytest.raises(OutputError, match="cannot be written into"):
            write_page(place, "")
    check_place(tmp_path / "new/below")
    assert not (tmp_path / "new").exists()
