"""Results of `paper.py`: kept as JSON, shown as Markdown tables and as a plot. Nothing is measured here."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WAYS = {
    "original": "original",
    "mean": "mean",
    "first": "first",
    "random": "random",
    "aligned": "aligned, no data",
    "refit": "aligned, refit",
    "distil": "aligned, refit, distil",
}
"""Way -> what tables and plots call it, in their order."""
PAPER = (("MHA", 8, 1.51, 47.2), ("GQA-8", 2, 0.28, 47.1), ("MQA", 1, 0.24, 46.6))
"""T5 XXL at alpha = 0.05: model, KV heads of ours beside it, seconds a sample, mean score (the paper's table 1)."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One conversion and how long it was trained; without groups it is the original."""

    groups: int
    way: str
    alpha: float
    measured: dict[str, float] = field(default_factory=dict, compare=False)
    """`loss` in nats a token, `seconds` of training."""


@dataclass
class Results:
    """Everything that was measured on one machine."""

    machine: str
    settings: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    times: dict[int, list[float]] = field(default_factory=dict)
    """KV heads -> seconds of decode steps."""

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        times = {int(groups): seconds for groups, seconds in content["times"].items()}
        return cls(content["machine"], content["settings"], [Trial(**one) for one in content["trials"]], times)

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rounded = {groups: [round(one, 5) for one in seconds] for groups, seconds in self.times.items()}
        lines = {
            "machine": json.dumps(self.machine),
            "settings": json.dumps(self.settings),
            "times": json.dumps(rounded),
            "trials": "[\n  " + ",\n  ".join(json.dumps(asdict(one)) for one in self.trials) + "\n ]",
        }
        path.write_text("{\n" + ",\n".join(f' "{name}": {line}' for name, line in lines.items()) + "\n}\n")

    def add(self, trial: Trial, measured: dict[str, float]) -> None:
        """Add a trial with what was measured."""
        self.trials.append(Trial(groups=trial.groups, way=trial.way, alpha=trial.alpha, measured=measured))

    def loss(self, groups: int, way: str, alpha: float) -> float | None:
        """Return a loss in nats a token; None where it was not measured."""
        wanted = Trial(groups=groups, way=way, alpha=alpha)
        return next((one.measured["loss"] for one in self.trials if one == wanted), None)

    @property
    def original(self) -> float | None:
        """Loss of the original."""
        return self.loss(0, "original", 0.0)

    def above(self, groups: int, way: str, alpha: float) -> float | None:
        """Return a loss above the original's."""
        loss, original = self.loss(groups, way, alpha), self.original
        return None if loss is None or original is None else loss - original

    def step(self, groups: int) -> float | None:
        """Return the median milliseconds of a decode step."""
        return 1000 * statistics.median(self.times[groups]) if self.times.get(groups) else None

    @property
    def alphas(self) -> list[float]:
        """What trials were trained for."""
        return sorted({one.alpha for one in self.trials})


def format_tables(results: Results, table_alpha: float) -> str:
    """Return Markdown tables in the shape of the paper's figures 4, 5 and 6 and its table 1."""
    title = "" if results.original is None else f"Original: {results.original:.4f} nats a token."
    parts = [results.machine, title, _methods(results, table_alpha), _by_alpha(results), _by_groups(results)]
    return "\n\n".join(filter(None, [*parts, _quality_against_time(results, table_alpha)]))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not any(any(row[1:]) for row in rows):
        return ""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _number(value: float | None, form: str = "+.3f") -> str:
    return "" if value is None else format(value, form)


def _methods(results: Results, alpha: float) -> str:
    ways = [way for way in WAYS if results.loss(1, way, 0.0) is not None]
    trained = [one for one in results.alphas if 0 < one <= alpha]
    header = ["one KV head", "not trained", *(f"alpha = {one:g}" for one in trained)]
    rows = [[WAYS[way], *(_number(results.above(1, way, one)) for one in (0.0, *trained))] for way in ways]
    return _table(header, rows)


def _by_alpha(results: Results) -> str:
    groups = sorted({one.groups for one in results.trials if one.way == "mean"}, reverse=True)
    header = ["mean", *(f"alpha = {alpha:g}" for alpha in results.alphas)]
    return _table(
        header, [[_name(one), *(_number(results.above(one, "mean", a)) for a in results.alphas)] for one in groups]
    )


def _name(groups: int) -> str:
    return {8: "MHA", 1: "MQA"}.get(groups, f"GQA-{groups}")


def _by_groups(results: Results) -> str:
    whole = results.step(8)
    rows = []
    for groups in results.times:
        step, (low, high) = results.step(groups), _quartiles(results.times[groups])
        share = "" if step is None or whole is None else f"{100 * step / whole:.0f} %"
        rows.append([str(groups), _number(step, ".1f"), f"{low:.1f} to {high:.1f}", share])
    return _table(["KV heads", "ms a decode step", "middle half of the steps", "of MHA"], rows)


def _quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) // 4], 1000 * ordered[(3 * len(ordered)) // 4]


def _quality_against_time(results: Results, alpha: float) -> str:
    rows = []
    for name, groups, seconds, score in PAPER:
        ours = [results.original] if groups == 8 else [results.loss(groups, "mean", alpha)]
        step = results.step(groups)
        rows.append(
            [
                name,
                _number(seconds, ".2f"),
                _number(score, ".1f"),
                _name(groups),
                _number(step, ".1f"),
                _number(ours[0], ".3f"),
            ]
        )
    header = ["paper", "s a sample", "score", "ours", "ms a decode step", f"loss at alpha = {alpha:g}"]
    return _table(header, rows)


def draw(results: Results, table_alpha: float, path: Path) -> None:
    """Draw the methods, the loss by alpha and the decode time by number of groups, side by side.

    Args:
        results: What to draw.
        table_alpha: The alpha that methods are compared after.
        path: The PNG file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from mha2gqa.pages.figures import STYLE

    ink, muted, line = "#1b2126", "#5a656e", "#dcdfe0"
    colours = dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), line)
    colours |= {"text.color": ink, "legend.labelcolor": ink, "axes.labelcolor": muted}
    with matplotlib.rc_context(STYLE | colours | {"xtick.labelcolor": ink, "ytick.labelcolor": ink}):
        figure = Figure(figsize=(13, 3.6), layout="constrained", dpi=110)
        panels = figure.subplots(1, 3)
        _draw_methods(panels[0], results, table_alpha)
        _draw_alphas(panels[1], results)
        _draw_times(panels[2], results)
        figure.savefig(path, facecolor="#ffffff")


_BLUE, _ORANGE, _GREY = "#0a66b0", "#b34a00", "#5a656e"


def _draw_methods(axes: Any, results: Results, alpha: float) -> None:
    trained = max((one for one in results.alphas if 0 < one <= alpha), default=0.0)
    ways = [way for way in WAYS if results.above(1, way, 0.0) is not None]
    for shift, at, colour in ((0.2, 0.0, _GREY), (-0.2, trained, _ORANGE)):
        values = [results.above(1, way, at) or 0.0 for way in ways]
        label = "not trained" if at == 0 else f"alpha = {at:g}"
        axes.barh([row - shift for row in range(len(ways))], values, height=0.36, color=colour, label=label)
    axes.set_yticks(range(len(ways)), [WAYS[way] for way in ways])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(title="one KV head, by method", xlabel="loss above the original (nats a token)")
    axes.legend(fontsize=9)


def _draw_alphas(axes: Any, results: Results) -> None:
    for groups, colour, mark in ((1, _ORANGE, "o-"), (2, _BLUE, "s-"), (4, _GREY, "D-")):
        found = [(one, results.above(groups, "mean", one)) for one in results.alphas]
        known = [(alpha, loss) for alpha, loss in found if loss is not None]
        if known:
            axes.plot(*zip(*known, strict=True), mark, color=colour, label=_name(groups))
    axes.set(title="mean, by training", xlabel="alpha", ylabel="loss above the original (nats a token)")
    axes.legend(fontsize=9)


def _draw_times(axes: Any, results: Results) -> None:
    groups = sorted(results.times)
    steps = [results.step(one) or 0.0 for one in groups]
    axes.plot([str(one) for one in groups], steps, "o-", color=_BLUE)
    axes.set(title="decode step, by groups", xlabel="KV heads", ylabel="ms", ylim=(0, None))
