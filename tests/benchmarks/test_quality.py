"""`benchmarks/quality.py` measures what `convert` writes, on text that no conversion has read, and counts right."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import quality
import torch
from quality_job import Settings, measure
from quality_results import Results, Run, draw, format_tables

from mha2gqa import ConvertOptions, convert
from mha2gqa.files.source import reference_directory
from mha2gqa.texts.blocks import held_out_loss

SETTINGS = Settings(tokens=4096, eval_tokens=2048, context=128, steps=2, threads=1)


def test_a_text_for_both_is_divided_by_documents_and_none_is_in_both(tmp_path: Path) -> None:
    documents = [f"story {number} " * 10 for number in range(50)]
    path = tmp_path / "stories.txt"
    path.write_text("<|end|>".join([*documents, documents[3], documents[45]]))
    calibration, evaluation = quality.prepare_texts([str(path)], [], r"<\|end\|>", None)
    assert [*evaluation, *calibration] == [document.strip() for document in documents]
    assert sum(map(len, evaluation)) == pytest.approx(sum(map(len, documents)) / 5, rel=0.05)


def test_documents_to_evaluate_on_are_taken_out_of_the_calibration_text(tmp_path: Path) -> None:
    for name, documents in (("a", ["one", "two", "three"]), ("b", ["two"])):
        (tmp_path / f"{name}.txt").write_text("|".join(documents))
    texts = quality.prepare_texts([str(tmp_path / "a.txt")], [str(tmp_path / "b.txt")], r"\|", None)
    assert texts == (["one", "three"], ["two"])


def test_the_reference_has_text_of_its_own() -> None:
    calibration, evaluation = quality.prepare_texts([], [], None, None)
    assert evaluation
    assert not set(calibration) & set(evaluation)


def test_one_document_cannot_be_divided(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single document")
    with pytest.raises(SystemExit, match="--separator"):
        quality.prepare_texts([str(tmp_path / "one.txt")], [], None, None)


def test_a_job_measures_what_convert_writes(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    texts = quality.prepare_texts([], [], None, None)
    settings = Settings(tokens=4096, eval_tokens=2048, context=None, steps=2, threads=threads)
    jobs = list(quality.plan_jobs("reference", [4], ["mean", "procrustes-norm"], 2, texts, settings, tmp_path))
    assert [(job.way, job.seed) for job in jobs] == [
        ("", 0),
        ("mean", 0),
        ("procrustes-norm", 0),
        ("procrustes-norm", 1),
    ]
    original, mean, turned = (measure(json.dumps(asdict(job))) for job in jobs[:3])
    convert(ConvertOptions(groups=4, output=tmp_path / "mean"))
    assert original["loss"] == pytest.approx(held_out_loss(reference_directory(), 2048), abs=1e-6)
    assert mean["loss"] == pytest.approx(held_out_loss(tmp_path / "mean", 2048), abs=1e-6)
    assert original["loss"] < turned["loss"] < mean["loss"]
    assert original["evaluated"] == 4 * 511
    assert (mean["cache_before"], mean["cache"]) == (4096, 2048)
    assert 0 < mean["seconds"] < 600
    assert mean["peak"] > 1e8


def sample(folder: Path) -> Results:
    results = Results("a machine", [])
    losses = {("", 0): [2.0], ("mean", 2): [3.0], ("distil", 2): [2.02, 2.01, 2.05], ("mean", 1): [4.0]}
    for (way, groups), found in losses.items():
        for seed, loss in enumerate(found):
            run = Run(checkpoint="m", text="t", groups=groups, way=way, seed=seed, settings=asdict(SETTINGS))
            assert not results.has(run)
            costs = {"seconds": 1.5 + seed, "peak": 400_000_000 + seed, "cache": 512 * groups, "cache_before": 4096}
            results.add(run, {"loss": loss, "evaluated": 1000, **costs})
            assert results.has(run)
    results.write(folder / "results.json")
    return Results.read(folder / "results.json")


def test_tables_show_medians_and_ranges_as_shares_of_the_mean(tmp_path: Path) -> None:
    table = format_tables(sample(tmp_path))
    assert "m on t: 2.000 nats a token over 1,000 tokens" in table
    assert "| way | 2 KV heads | 1 KV head | s | peak MB |" in table
    assert "| mean | +1.000 (100.0 %) | +2.000 (100.0 %) | 1.5 | 400 |" in table
    assert "| aligned, with data, distil | +0.020 [+0.010, +0.050] (2.0 %) |  | 2.5 | 400 |" in table


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    draw([sample(tmp_path)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
