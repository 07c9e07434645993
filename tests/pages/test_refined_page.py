"""What the page says of a conversion that was refined on text, from the record to the table."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.verbs.verify.page import verify_page
from tests.pages.sample import HOSTILE, verification
from tests.verbs.verify.subjects import converted, save_source, save_text

ERRORS = {"model.layers.0.self_attn": {"merged": 0.5, "refit": 0.25, "distil": 0.0625}, HOSTILE: {"merged": 0.125}}


def page(**changes: Any) -> str:
    report = verification()
    return verify_page(dataclasses.replace(report, conversion=dataclasses.replace(report.conversion, **changes)))


def cells(html: str) -> list[str]:
    body = html[html.index("Errors of the refinement") :].split("</table>")[0]
    return re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", body)


def test_the_errors_of_each_step() -> None:
    layers = [{"module": module, "errors": errors} for module, errors in ERRORS.items()]
    html = page(layers=layers, text="text from a & b.txt")
    found = cells(html)
    assert found[:4] == ["attention module", "merged", "refit", "distil"]
    assert found[4:8] == ["model.layers.0.self_attn", "0.5", "0.25", "0.0625"]
    assert found[9:] == ["0.125", "", ""]
    assert "<script" not in html
    assert "<dd>text from a &amp; b.txt</dd>" in html


def test_nothing_is_said_where_nothing_was_refined() -> None:
    html = page()
    assert "Errors of the refinement" not in html
    assert "calibration text" not in html


def test_the_options_of_several_texts() -> None:
    assert "data a.txt, data b.txt, steps 3" in page(options={"groups": 2, "data": ["a.txt", "b.txt"], "steps": 3})


@pytest.mark.parametrize("grouping", ["similar", "contiguous"])
def test_a_refined_checkpoint_from_conversion_to_page(cli: Any, tmp_path: Path, grouping: str) -> None:
    save_source(tmp_path / "source")
    save_text(tmp_path / "text.txt", 2000)
    options = {"method": "aligned", "grouping": grouping, "refine": "distil", "steps": 3, "data": ("text.txt",)}
    converted_in = converted(tmp_path / "source", tmp_path / "out", 2, **options)
    answer = cli("verify", converted_in, "--data", "text.txt", "--tokens", 256, "--report", "page")
    assert answer.code in (0, 3), answer.err
    html, record = (tmp_path / "page/report.html").read_text(), json.loads((converted_in / "mha2gqa.json").read_text())
    for layer in record["layers"]:
        groups = "; ".join(" ".join(map(str, group)) for group in layer["groups"])
        assert f"Similarity of the KV heads of {layer['module']}, by group: {groups}." in html
        assert all(f"{error:.3g}" in cells(html) for error in layer["errors"].values())
    assert "<dd>text from text.txt</dd>" in html
