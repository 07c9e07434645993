"""`benchmarks/real.py` divides a text, compares with the original, and goes on where it was stopped."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import real
import torch
from lm_eval.tasks import TaskManager
from quantised_cache import GROUP, rounded
from real_job import Job, measure
from ways import BASELINES, WAYS

from mha2gqa.errors import TextError
from mha2gqa.methods import METHODS
from tests.verbs.verify.subjects import save_source, save_text
from tests.verbs.verify.test_benchmarks import write_task


def test_the_end_of_a_text_is_kept_to_evaluate_on(tmp_path: Path) -> None:
    (text := tmp_path / "text.txt").write_text("".join(map(chr, range(33, 93))))
    parts = [Path(one).read_text() for one in real.texts([text], [], tmp_path)]
    assert "".join(parts) == text.read_text() and len(parts[1]) == 24
    (other := tmp_path / "other.txt").write_text("others")
    assert Path(real.texts([text], [other], tmp_path)[0]).read_text() == text.read_text()


@pytest.mark.parametrize(("groups", "is_same"), [(4, True), (1, False)])
def test_a_result_is_compared_with_the_original(groups: int, is_same: bool, tmp_path: Path) -> None:
    found = measure(job(tmp_path, "mean", groups))

    assert found["evaluated"] == 60
    if is_same:
        assert found["loss"] == pytest.approx(found["original"], abs=1e-5)
        assert found["quantised"] == pytest.approx(found["original_quantised"], abs=1e-4)
        off = [abs(found["quantised"][bits] - found["loss"]) for bits in ("4", "8")]
        assert off[0] > 5 * off[1] > 0
        assert found["kl"] == pytest.approx(0, abs=1e-3) and found["top1"] > 0.99 and found["same_tokens"] == 64
    else:
        assert found["kl"] > 0.01 and found["top1"] < 1 and found["cache"] * 4 == found["cache_before"]


def job(folder: Path, way: str, groups: int = 1, model_type: str = "llama", **options: Any) -> Job:
    text = str(save_text(folder / "text.txt", 400))
    asked: dict[str, Any] = {"seed": 0, "tokens": 64, "eval_tokens": 64, "context": 16, "steps": 1, "threads": None}
    source, work = str(save_source(folder / "source", model_type)), str(folder / "work")
    return Job(model=source, groups=groups, way=way, calibration=text, evaluation=text, work=work, **asked | options)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_the_cache_of_as_many_heads(way: str, tmp_path: Path) -> None:
    found = measure(job(tmp_path, way))
    assert found["cache"] * 4 == found["cache_before"] == 2 * 2 * 4 * 16 * 4
    assert 0 < abs(found["loss"] - found["original"]) < 10 and found["kl"] > 0
    assert not BASELINES.keys() & METHODS.keys()


def test_a_way_that_a_model_does_not_have_is_said(tmp_path: Path) -> None:
    found = measure(job(tmp_path, "latent", model_type="qwen3"))
    assert list(found) == ["refused"] and "norm" in found["refused"]
    content = {"runs": [{"asked": {"model": "m", "groups": 1, "way": "latent"}, **found}, run("mean", 6.0)]}
    table = real.table(content)
    assert f"m, 1 KV heads: {WAYS['latent'].label}: {found['refused']}" in table and "| mean | +4.000" in table
    real.draw(content, tmp_path / "real.png")


def test_what_may_be_mended_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(TextError):
        measure(replace(job(tmp_path, "data"), calibration=str(tmp_path / "nowhere.txt")))


def test_tasks_of_the_harness_are_scored_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))
    lines = [{"start": "abc"[:number], "choices": ["xy", "zw"], "answer": number % 2} for number in (1, 2, 3)]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_task(tmp_path / "tasks", "guess", tmp_path / "lines.jsonl")
    found = measure(job(tmp_path, "mean", 4, tasks=("guess",), task_path=str(tmp_path / "tasks")))
    assert found["tasks"] == found["original_tasks"] and list(found["tasks"]) == ["guess, acc"]
    assert found["tasks"]["guess, acc"] * 3 == pytest.approx(round(found["tasks"]["guess, acc"] * 3))
    rows = real.table(
        {
            "runs": [
                run("first", 4.0),
                {**run("mean", 6.0), "tasks": {"guess, acc": 0.25}} | {"original_tasks": {"guess, acc": 0.5}},
            ]
        }
    ).splitlines()
    assert "| same tokens | guess, acc | bytes |" in rows[2]
    assert "| 0.500 | 30 |" in rows[4] and "| 3.0 |  | 10 |" in rows[5] and "| 3.0 | 0.250 | 10 |" in rows[6]


def run(way: str, loss: float) -> dict[str, Any]:
    measured = {"loss": loss, "original": 2.0, "kl": 0.1, "top1": 0.5, "same_tokens": 3.0, "cache": 10}
    measured |= {"quantised": {"8": loss, "4": loss + 0.25}, "original_quantised": {"8": 2.0, "4": 2.125}}
    return {"asked": {"model": "m", "groups": 1, "way": way}, "cache_before": 30, "seconds": 5, "peak": 1e8, **measured}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_of_a_cache_are_rounded_to_few_bits_group_by_group(dtype: torch.dtype) -> None:
    x_BHTF = torch.randn(1, 2, 3, GROUP + 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = rounded(x_BHTF, 4)
    assert found.dtype == dtype
    for index in range(6):
        for part in (slice(0, GROUP), slice(GROUP, None)):
            numbers = x_BHTF.flatten(0, 2)[index, part].tolist()
            least, step = min(numbers), (max(numbers) - min(numbers)) / 15
            wanted = torch.tensor([least + round((one - least) / step) * step for one in numbers]).to(dtype)
            torch.testing.assert_close(found.flatten(0, 2)[index, part], wanted)
    assert torch.equal(rounded(torch.full((1, 1, 1, 4), 3.0), 4), torch.full((1, 1, 1, 4), 3.0))


def test_shares_are_of_the_mean(tmp_path: Path) -> None:
    content = {"runs": [run("mean", 6.0), run("data", 2.4)]}
    rows = real.table(content).splitlines()
    assert rows[-1].startswith(
        f"| {WAYS['data'].label} | +0.400 (10.0%) | +0.400 | +0.650 | 0.100 | 50.0% | 3.0 | 10 | 5 | 100 |"
    )
    assert rows[-3].startswith("| the original | | +0.000 | +0.125 |")
    real.draw(content, tmp_path / "real.png")
    assert (tmp_path / "real.png").stat().st_size > 1000


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    results = real.Results(tmp_path / "real.json", 1)
    results.add({"way": "mean"}, {"loss": 3.0})
    again = real.Results(tmp_path / "real.json", 1)
    assert again.find({"way": "mean"}) == {"asked": {"way": "mean"}, "loss": 3.0}
    assert again.find({"way": "data"}) is None
