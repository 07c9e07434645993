"""Numbers in the card: in the Hub's form, once, and nothing else in the file changes."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mha2gqa.errors import OutputError
from mha2gqa.verbs.verify.card import check_card, write_numbers
from mha2gqa.verbs.verify.outcome import Benchmark
from tests.pages.sample import verification

BODY = "\n# A model\n\n---\nmodel-index: this is no header\n---\n\nWritten by *somebody*. \t\n"
OTHERS = """\
model-index:
- name: theirs
  results:
  - task: {type: text-generation}
    dataset: {type: wikitext, name: WikiText}
    metrics:
    - type: perplexity
      value: 12.5
      note: not a field of the Hub's
- name: another
  results: []
"""
HEADERS = {
    "plain": "license: mit\ntags:\n- a\n",
    "comments": "# first\nlicense: mit  # why\n\n# last\n",
    "in the middle": f"license: mit\n{OTHERS}# before tags\n\ntags: [a]\n",
    "at the end": f"license: mit\n{OTHERS}# the end\n",
    "alone": OTHERS,
    "empty": "",
}


def card(directory: Path, header: str, body: str = BODY) -> Path:
    path = directory / "README.md"
    path.write_bytes(f"---\n{header}---\n{body}".encode())
    return path


def rest(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text().split("---\n")[1])
    return {key: value for key, value in content.items() if key != "model-index"}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_only_our_numbers_change(tmp_path: Path, header: str) -> None:
    path = card(tmp_path, header)
    write_numbers(verification(), tmp_path)
    first = path.read_text()
    before, index, after = first.partition("model-index:\n")
    assert index
    assert first.endswith(f"---\n{BODY}")
    kept = [line for line in header.replace(OTHERS, "").splitlines() if line]
    assert [line for line in (before + after).splitlines() if line in kept and line] == kept
    write_numbers(verification(), tmp_path)
    assert path.read_text() == first
    results = yaml.safe_load(first.split("---\n")[1])["model-index"]
    theirs = yaml.safe_load(OTHERS)["model-index"]
    if OTHERS in header:
        assert results[0]["name"] == "theirs"
        assert results[0]["results"][0] == theirs[0]["results"][0]
        assert results[1] == theirs[1]
    assert rest(path) == {key: value for key, value in (yaml.safe_load(header) or {}).items() if key != "model-index"}


def test_the_hub_reads_the_numbers(tmp_path: Path) -> None:
    card(tmp_path, "license: mit\n")
    report = verification()
    write_numbers(report, tmp_path)
    found = {
        (one.dataset_name, one.metric_type): one for one in ModelCard.load(tmp_path / "README.md").data.eval_results
    }
    assert report.outputs is not None
    assert report.outputs.loss is not None
    text = report.outputs.text.description
    assert {key: one.metric_value for key, one in found.items()} == {
        (text, "perplexity"): pytest.approx(math.exp(4.025), rel=1e-5),
        (text, "original_perplexity"): pytest.approx(math.exp(2.478), rel=1e-5),
        (text, "kl_divergence"): 1.42,
        (text, "top1_agreement"): 0.521,
        ("hellaswag", "acc_norm"): 0.2571,
        ("hellaswag", "original_acc_norm"): 0.2655,
    }
    assert found["hellaswag", "acc_norm"].dataset_type == "Rowan/hellaswag"
    assert all(one.dataset_args["measured_by"] == "mha2gqa verify" for one in found.values())


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    path = card(tmp_path, HEADERS["in the middle"])
    write_numbers(verification(), tmp_path)
    write_numbers(dataclasses.replace(verification(), benchmarks=()), tmp_path)
    (theirs, *ours) = yaml.safe_load(path.read_text().split("---\n")[1])["model-index"][0]["results"]
    assert theirs["dataset"]["name"] == "WikiText"
    assert len(ours) == 1


def test_a_run_that_measured_nothing_changes_nothing(tmp_path: Path) -> None:
    path = card(tmp_path, HEADERS["in the middle"])
    write_numbers(verification(), tmp_path)
    before = path.read_bytes()
    write_numbers(verification(benchmarks=(), outputs=None), tmp_path)
    assert path.read_bytes() == before


def test_tasks_on_the_same_data_stay_apart(tmp_path: Path) -> None:
    card(tmp_path, "")
    (one,) = verification().benchmarks
    several = (one, dataclasses.replace(one, metric="acc"), dataclasses.replace(one, task="other", metric="acc"))
    write_numbers(verification(outputs=None, benchmarks=several), tmp_path)
    results = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])["model-index"][0]["results"]
    assert [(result["dataset"]["name"], len(result["metrics"])) for result in results] == [
        ("hellaswag", 4),
        ("other", 2),
    ]


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    card(tmp_path, "")
    broken = Benchmark(**{**vars(verification().benchmarks[0]), "converted": math.nan})
    write_numbers(verification(outputs=None, benchmarks=(broken,)), tmp_path)
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [one.metric_type for one in results] == ["original_acc_norm"]


@pytest.mark.parametrize(
    "text", ["", "# No header\n", "# Windows\r\n", "---\r\nlicense: mit\r\n---\r\n\r\n# Windows\r\n"]
)
def test_cards_without_a_header_and_with_other_line_ends(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    if text:
        path.write_bytes(text.encode())
    write_numbers(verification(), tmp_path)
    written = path.read_bytes().decode()
    assert written.endswith(text.rpartition("---\r\n")[2])
    assert ("\r\n" in written) == ("\r\n" in text)
    assert written.count("\r\n") in (0, written.count("\n"))
    assert ModelCard(written).data["eval_results"]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("license: [mit\n", "is no YAML"),
        ("model-index: 5\n", "no list of models"),
        ("model-index:\n- name: a\n  results: none\n", "no list of models"),
        ("- a\n- b\n", "holds no keys"),
    ],
)
def test_a_damaged_header_is_refused_before_anything_is_measured(tmp_path: Path, header: str, problem: str) -> None:
    path = card(tmp_path, header)
    with pytest.raises(OutputError, match=problem):
        check_card(tmp_path)
    with pytest.raises(OutputError, match=problem):
        write_numbers(verification(), tmp_path)
    assert path.read_bytes().decode() == f"---\n{header}---\n{BODY}"


@pytest.mark.parametrize("header", ["{license: mit, tags: [a]}\n", "model-index: &x []\nother: *x\n"])
def test_a_header_that_cannot_take_them_stays_as_it_is(tmp_path: Path, header: str) -> None:
    path = card(tmp_path, header)
    for attempt in (check_card, lambda directory: write_numbers(verification(), directory)):
        with pytest.raises(OutputError, match="cannot be set alone"):
            attempt(tmp_path)
    assert path.read_bytes().decode() == f"---\n{header}---\n{BODY}"


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\n---\n\xff")
    with pytest.raises(OutputError, match="cannot be read"):
        check_card(tmp_path)
