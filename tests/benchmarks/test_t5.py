"""`benchmarks/t5.py` plans what the paper's table holds, finds its pairs, and shows what was measured."""

from pathlib import Path

import pytest
import t5
import t5_task
from t5_results import Results, Trial, format_tables

SOURCE = '''
class Box:
    def open(self, key: str = "k") -> bool:
        """Open the box.

        More.
        """
        self.key = key
        return True

    def shut(self): pass

async def wait(*seconds, **more):
    "Wait."

def much():
    """A line that is longer than what a target may be, and left out."""
'''


def results() -> Results:
    found = Results("a machine", {"epochs": 1, "alpha": 0.05}, {"steps": 10, "tokens": 1000})
    found.trials = [
        Trial(groups=8, measured={"loss": 2.0, "rouge": 30.0, "exact": 10.0, "seconds": 0.0}),
        Trial(groups=1, method="mean", measured={"loss": 3.0, "rouge": 20.0, "exact": 5.0, "seconds": 0.0}),
        Trial(
            groups=1, method="mean", objective="lm", measured={"loss": 2.5, "rouge": 25.0, "exact": 7.0, "seconds": 9.0}
        ),
    ]
    found.times = {8: [0.004, 0.002, 0.003], 1: [0.001, 0.001, 0.001]}
    return found


def test_pairs_are_functions_and_the_first_lines_of_their_docstrings(tmp_path: Path) -> None:
    (tmp_path / "box.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (")
    assert [pair for path in t5_task._files(tmp_path) for pair in t5_task._functions(path)] == [
        ("def wait(*seconds, **more)", "Wait."),
        ("def open(self, key: str='k')\nself.key = key\nreturn True", "Open the box."),
    ]


def test_each_trial_is_planned_once_and_trained_like_the_papers() -> None:
    trials = list(t5.plan_trials())
    assert trials[0] == Trial(groups=8)
    assert len(trials) == len({(one.groups, one.method, one.objective) for one in trials}) == 14
    assert {one.groups for one in trials if (one.method, one.objective) == ("mean", "lm")} == {4, 2, 1}
    assert {one.method for one in trials if one.groups == 1} == {"mean", "first", "random"}


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results().write(tmp_path / "deep/t5.json")
    again = Results.read(tmp_path / "deep/t5.json")
    assert again == results()
    assert [one.measured for one in again.trials] == [one.measured for one in results().trials]


def test_the_table_sets_the_papers_rows_beside_ours() -> None:
    text = format_tables(results())
    assert "| MHA |  |  | 2.000 | 30.0 | 10.0 | 3.00 | MHA | 1.51 | 47.2 |" in text
    assert "| MQA | mean | no | 3.000 | 20.0 | 5.0 | 1.00 |  |  |  |" in text
    assert "| MQA | mean | lm | 2.500 | 25.0 | 7.0 | 1.00 | MQA | 0.24 | 46.6 |" in text


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    results().write(tmp_path / "t5.json")
    with pytest.raises(SystemExit, match="was measured with"):
        t5.main(folder=tmp_path, json_file=tmp_path / "t5.json", epochs=2, alpha=0.05, threads=1, show=False)
