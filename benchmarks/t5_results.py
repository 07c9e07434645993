"""Results of `t5.py`: kept as JSON, shown as Markdown tables. Nothing is measured here."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PAPER = {8: ("MHA", 1.51, 47.2), 4: None, 2: ("GQA-8", 0.28, 47.1), 1: ("MQA", 0.24, 46.6)}
"""KV heads of ours -> T5 XXL at alpha = 0.05 with as large a share of them: seconds a sample, mean score (table 1)."""
_HEADER = ("ours", "KV heads by", "trained", "loss", "ROUGE-L", "exact, %", "ms a token")
_PAPER_HEADER = ("the paper's", "s a sample", "score")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One checkpoint: the original (8 KV heads), a conversion, or a conversion that was trained."""

    groups: int
    method: str = ""
    objective: str = ""
    """Empty where nothing was trained."""
    measured: dict[str, float] = field(default_factory=dict, compare=False)
    """`loss` in nats a token of the target, `rouge` and `exact` in per cent, `seconds` of training."""


@dataclass
class Results:
    """Everything that was measured on one machine."""

    machine: str
    settings: dict[str, Any]
    original: dict[str, float]
    """Of the pre-training: `steps`, `tokens`, `parameters`, `seconds`."""
    trials: list[Trial] = field(default_factory=list)
    times: dict[int, list[float]] = field(default_factory=dict)
    """KV heads -> seconds of one generated token, by rounds."""

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        content["trials"] = [Trial(**one) for one in content["trials"]]
        content["times"] = {int(groups): seconds for groups, seconds in content["times"].items()}
        return cls(**content)

    def write(self, path: Path) -> None:
        """Write a JSON file, a trial a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        trials = "[\n  " + ",\n  ".join(json.dumps(asdict(one)) for one in self.trials) + "\n ]"
        lines = {name: json.dumps(getattr(self, name)) for name in ("machine", "settings", "original", "times")}
        lines["trials"] = trials if self.trials else "[]"
        path.write_text("{\n" + ",\n".join(f' "{name}": {line}' for name, line in lines.items()) + "\n}\n")


def format_tables(results: Results) -> str:
    """Return the facts and a Markdown table in the shape of the paper's table 1."""
    made = ", ".join(f"{value:,.0f} {name}" for name, value in results.original.items())
    rows = [_row(results, trial) for trial in sorted(results.trials, key=lambda one: -one.groups)]
    header = (*_HEADER, *_PAPER_HEADER)
    table = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([results.machine, f"pre-training: {made}", "", *table])


def _row(results: Results, trial: Trial) -> list[str]:
    found = trial.measured
    times = results.times.get(trial.groups)
    is_the_papers = trial.objective == "lm" and trial.method == "mean"
    paper = PAPER.get(trial.groups) if is_the_papers or not trial.method else None
    return [
        {8: "MHA", 1: "MQA"}.get(trial.groups, f"GQA-{trial.groups}"),
        trial.method,
        trial.objective or ("" if not trial.method else "no"),
        f"{found['loss']:.3f}",
        f"{found['rouge']:.1f}",
        f"{found['exact']:.1f}",
        f"{1000 * statistics.median(times):.2f}" if times else "",
        *((paper[0], f"{paper[1]:.2f}", f"{paper[2]:.1f}") if paper else ("", "", "")),
    ]
