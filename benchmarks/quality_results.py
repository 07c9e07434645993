"""Results of `quality.py`: kept as JSON, shown as Markdown tables and as a plot. Nothing is measured here."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ways import WAYS


@dataclass(frozen=True, kw_only=True)
class Run:
    """One conversion and what was measured; without a way it is the original."""

    checkpoint: str
    text: str
    groups: int
    way: str
    seed: int
    settings: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict, compare=False)
    """`loss` in nats a token, `evaluated` tokens, `seconds`, `peak` bytes, `cache` and `cache_before` bytes a token."""


@dataclass
class Results:
    """Runs on one machine."""

    machine: str
    runs: list[Run]

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        return cls(content["machine"], [Run(**run) for run in content["runs"]])

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        runs = ",\n  ".join(json.dumps(asdict(run)) for run in self.runs)
        path.write_text(f'{{\n "machine": {json.dumps(self.machine)},\n "runs": [\n  {runs}\n ]\n}}\n')

    def has(self, run: Run) -> bool:
        """Return whether such a run was measured."""
        return run in self.runs

    def add(self, run: Run, measured: dict[str, Any]) -> None:
        """Take in a run."""
        self.runs.append(Run(**asdict(run) | {"measured": measured}))

    def subjects(self) -> Iterator["Subject"]:
        """Yield each checkpoint with all its runs of the same text and settings."""
        for original in (run for run in self.runs if not run.way):
            same = (original.checkpoint, original.text, original.settings)
            yield Subject(
                original, [run for run in self.runs if run.way and (run.checkpoint, run.text, run.settings) == same]
            )


@dataclass(frozen=True)
class Subject:
    """A checkpoint, measured."""

    original: Run
    runs: list[Run]

    @property
    def groups(self) -> list[int]:
        """The numbers of KV heads, the largest first."""
        return sorted({run.groups for run in self.runs}, reverse=True)

    def losses(self, way: str, groups: int) -> list[float]:
        """Return the losses above the original's in nats a token, a number per seed."""
        loss = self.original.measured["loss"]
        return [run.measured["loss"] - loss for run in self._found(way, groups)]

    def shares(self, way: str, groups: int) -> list[float]:
        """Return the losses in per cent of the mean's."""
        mean = self.losses("mean", groups)
        return [100 * loss / mean[0] for loss in self.losses(way, groups)] if mean else []

    def costs(self, way: str, groups: int, key: str) -> list[float]:
        """Return `seconds`, `peak` or `cache` of each run."""
        return [run.measured[key] for run in self._found(way, groups)]

    def _found(self, way: str, groups: int) -> list[Run]:
        return [run for run in self.runs if (run.way, run.groups) == (way, groups)]


def format_tables(results: Results) -> str:
    """Return one Markdown table per checkpoint."""
    return "\n\n".join([results.machine, *(_table(subject) for subject in results.subjects())])


def _table(subject: Subject) -> str:
    original, settings = subject.original, subject.original.settings
    title = (
        f"{original.checkpoint} on {original.text}: {original.measured['loss']:.3f} nats a token over "
        f"{original.measured['evaluated']:,} tokens, above which conversions lose (100 % is what the mean loses; "
        f"calibrated on at most {settings['tokens']:,} tokens):"
    )
    heads = [f"{groups} KV head{'s' * (groups > 1)}" for groups in subject.groups]
    lines = [title, "", f"| way | {' | '.join(heads)} | s | peak MB |", f"|---|{'---|' * len(heads)}---|---|"]
    for way in WAYS:
        if any(run.way == way for run in subject.runs):
            cells = [WAYS[way].label, *(_cell(subject, way, groups) for groups in subject.groups)]
            costs = [[cost for groups in subject.groups for cost in subject.costs(way, groups, key)] for key in _COSTS]
            cells += [f"{statistics.median(costs[0]):.1f}", f"{max(costs[1]) / 1e6:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_COSTS = ("seconds", "peak")


def _cell(subject: Subject, way: str, groups: int) -> str:
    """Return the median in nats, its range over seeds where there are several, and the median as a share."""
    losses, shares = subject.losses(way, groups), subject.shares(way, groups)
    if not losses:
        return ""
    low, high = (f"{one:+.3f}" for one in (min(losses), max(losses)))
    between = "" if low == high else f" [{low}, {high}]"
    share = f" ({statistics.median(shares):.1f} %)" if shares else ""
    return f"{statistics.median(losses):+.3f}{between}{share}"


def draw(shown: Sequence[Results], path: Path) -> None:
    """Draw the losses of every way as a share of the mean's, a panel per checkpoint.

    Args:
        shown: What to draw.
        path: The PNG file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from mha2gqa.pages.figures import STYLE

    subjects = [subject for results in shown for subject in results.subjects()]
    ways = [way for way in WAYS if any(run.way == way for one in subjects for run in one.runs)]
    ink, muted, line = "#1b2126", "#5a656e", "#dcdfe0"
    colours = dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), line)
    colours |= {"text.color": ink, "legend.labelcolor": ink, "axes.labelcolor": muted, "xtick.labelcolor": muted}
    with matplotlib.rc_context(STYLE | colours | {"ytick.labelcolor": ink, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(3 + 2.6 * len(subjects), 1.2 + 0.3 * len(ways)), layout="constrained", dpi=110)
        panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
        for axes, subject in zip(panels, subjects, strict=True):
            _panel(axes, subject, ways)
        figure.supxlabel("loss above the original, per cent of what the mean loses", color=muted, fontsize=10)
        figure.savefig(path, facecolor="#ffffff")


_MARKS = (("o", "#0a66b0"), ("s", "#b34a00"), ("D", "#1c6e3d"), ("^", "#5a656e"))
_MOST = 130.0
"""Per cent at which the axis ends; what lies beyond stands at the edge."""


def _panel(axes: Any, subject: Subject, ways: Sequence[str]) -> None:
    cut = {groups: subject.costs("mean", groups, "cache_before") for groups in subject.groups}
    for (mark, colour), groups in zip(_MARKS, subject.groups, strict=False):
        for row, way in enumerate(ways):
            if shares := subject.shares(way, groups):
                low, middle, high = (min(f(shares), _MOST) for f in (min, statistics.median, max))
                axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
                axes.plot([middle], [row], mark, color=colour, alpha=0.85, clip_on=False)
        now = cut[groups][0] / subject.costs("mean", groups, "cache")[0]
        axes.plot([], [], mark, color=colour, label=f"{groups} KV head{'s' * (groups > 1)}, cache 1/{now:.0f}")
    axes.set(xlim=(-2, _MOST), ylim=(len(ways) - 0.5, -0.5), title=subject.original.checkpoint)
    axes.set_yticks(range(len(ways)), [WAYS[way].label for way in ways])
    axes.title.set_fontsize(10)
    axes.legend(loc="lower right", fontsize=8.5, handlelength=1, borderaxespad=0.2)
