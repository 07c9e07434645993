"""`benchmarks/paper.py` plans every trial once, measures what it says, keeps results, and shows them without mixing."""

from pathlib import Path
from typing import Any

import paper
import pytest
from paper_results import WAYS, Results, Trial, draw, format_tables

from mha2gqa.files.source import reference_directory
from mha2gqa.texts.blocks import held_out_loss

EVALUATED = 1024


def results() -> Results:
    found = Results("a machine", {"tokens": 1}, times={8: [0.4, 0.2, 0.3], 2: [0.1, 0.1, 0.1], 1: [0.05, 0.05, 0.05]})
    losses = {(0, "original", 0.0): 2.0, (1, "mean", 0.0): 4.5, (1, "mean", 0.05): 3.25, (2, "mean", 0.05): 2.75}
    for (groups, way, alpha), loss in losses.items():
        found.add(Trial(groups=groups, way=way, alpha=alpha), {"loss": loss, "seconds": 1.0})
    return found


def test_every_way_has_a_name() -> None:
    assert list(WAYS) == ["original", *paper.OPTIONS]


def test_each_trial_is_planned_once_and_untrained_ones_come_first() -> None:
    trials = list(paper.plan_trials(["mean", "aligned"], [2, 1], [0.01, 0.05], 0.05))
    assert len(trials) == len({(one.groups, one.way, one.alpha) for one in trials})
    assert {(one.groups, one.way, one.alpha) for one in trials} == {
        (0, "original", 0.0),
        *((1, "aligned", alpha) for alpha in (0.0, 0.05)),
        *((groups, "mean", alpha) for groups in (1, 2) for alpha in (0.0, 0.01, 0.05)),
    }
    assert [one.alpha for one in trials] == sorted(one.alpha for one in trials)


def test_an_untrained_trial_is_what_convert_makes(tmp_path: Path) -> None:
    original = paper.measure(Trial(groups=0, way="original", alpha=0.0), tmp_path, 2048, EVALUATED)
    assert original["loss"] == held_out_loss(reference_directory(), EVALUATED)
    found = paper.measure(Trial(groups=1, way="mean", alpha=0.0), tmp_path, 2048, EVALUATED)
    assert found["loss"] == held_out_loss(tmp_path / "1-mean", EVALUATED)
    assert found["loss"] > original["loss"] + 1


def test_training_is_that_of_the_paper(tmp_path: Path, monkeypatch: Any) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(paper.subprocess, "run", lambda words, **_: ran.append(words))
    paper._uptrain(tmp_path / "in", tmp_path / "out", 0.05)
    words = " ".join(ran[0][1:])
    assert "-m mha2gqa uptrain" in words
    assert "--alpha 0.05 --train all --objective lm" in words


def test_a_decode_step_leaves_the_cache_as_long_as_it_was() -> None:
    step = paper._decoder(2, 3, 7)
    cache = next(cell.cell_contents for cell in step.__wrapped__.__closure__ if hasattr(cell.cell_contents, "crop"))
    for _ in range(2):
        step()
    assert cache.get_seq_length() == 7
    assert cache.layers[0].keys.shape == (3, 2, 7, 32)
    assert {count: len(times) for count, times in paper.decode([2, 1], 1, 5, 3).items()} == {2: 3, 1: 3}


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results().write(tmp_path / "deep/paper.json")
    again = Results.read(tmp_path / "deep/paper.json")
    assert again == results()
    assert [one.measured for one in again.trials] == [one.measured for one in results().trials]
    assert Trial(groups=1, way="mean", alpha=0.05) in again.trials
    assert Trial(groups=1, way="mean", alpha=0.1) not in again.trials


def test_the_tables_say_what_was_measured_and_nothing_else() -> None:
    text = format_tables(results(), 0.05)
    assert "| mean | +2.500 | +1.250 |" in text
    assert "| GQA-2 |  | +0.750 |" in text
    assert "| 2 | 100.0 | 100.0 to 100.0 | 33 % |" in text
    assert "| MQA | 0.24 | 46.6 | MQA | 50.0 | 3.250 |" in text
    assert "| MHA | 1.51 | 47.2 | MHA | 300.0 | 2.000 |" in text
    assert "first" not in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw(results(), 0.05, tmp_path / "paper.png")
    assert (tmp_path / "paper.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    results().write(tmp_path / "paper.json")
    with pytest.raises(SystemExit, match="was measured with"):
        paper.main(ways="", groups="", alphas="", table_alpha=0.05, tokens=2, eval_tokens=3, batch=4, context=5,
                   rounds=0, threads=1, json_file=tmp_path / "paper.json", plot=None, show=False)  # fmt: skip
