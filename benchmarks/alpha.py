"""How much of what a conversion loses uptraining wins back: `python benchmarks/alpha.py --help`.

    plan_jobs  every start, number of KV heads, fraction of the pre-training, part that trains and objective
    measure    converts the reference and uptrains it, by the commands that users have
    format_table, draw  what was measured

Runs that the JSON file holds already are not made again; a result is kept as soon as it is there.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from quality import describe_machine

RATES = {
    ("attention", "lm"): 3e-3,
    ("attention", "distil"): 3e-3,
    ("all", "lm"): 1e-3,
    ("all", "distil"): 1e-3,
}
"""Learning rate of each combination: the better of 1e-3 and 3e-3 (`--rates`) at alpha 0.01, mean to 4 KV heads."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One uptraining, and the held-out losses in nats a token: `before`, `after`, `original`, `gap_closed`."""

    start: str
    groups: int
    alpha: float
    train: str
    objective: str
    rate: float
    seed: int = 0
    measured: dict[str, Any] = field(default_factory=dict, compare=False)


def plan_jobs(
    starts: Sequence[str],
    groups: Sequence[int],
    alphas: Sequence[float],
    trains: Sequence[str],
    objectives: Sequence[str],
    rate: float | None = None,
) -> Iterator[Run]:
    """Yield the runs, the short ones first."""
    for alpha in sorted(alphas):
        for start in starts:
            for train in trains:
                for objective in objectives:
                    for count in groups:
                        chosen = RATES[train, objective] if rate is None else rate
                        yield Run(start=start, groups=count, alpha=alpha, train=train, objective=objective, rate=chosen)


def measure(run: Run, folder: Path) -> dict[str, Any]:
    """Convert the reference, if that was not done, and uptrain it; on the CPU."""
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert
    from mha2gqa.verbs.uptrain.options import UptrainOptions
    from mha2gqa.verbs.uptrain.run import uptrain

    converted = folder / f"{run.start}-{run.groups}"
    if not converted.exists():
        convert(ConvertOptions(groups=run.groups, method=run.start, output=converted))
    options: dict[str, Any] = {"train": run.train, "objective": run.objective, "alpha": run.alpha, "seed": run.seed}
    # What is not measured in between makes no difference to the result.
    trainer = {"learning_rate": run.rate, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True}
    output = folder / "uptrained"
    report = uptrain(UptrainOptions(converted=converted, output=output, force=True, trainer=trainer, **options))
    if report is None or report.losses is None:
        sys.exit("error: this is for one process")
    losses = {name: value for name, value in report.losses.to_json().items() if name != "perplexities"}
    return losses | {"steps": report.length.steps, "tokens": report.length.tokens, "seconds": report.seconds}


def read(path: Path) -> list[Run]:
    """Return the runs in a JSON file."""
    return [Run(**run) for run in json.loads(path.read_text())["runs"]] if path.exists() else []


def write(path: Path, runs: Sequence[Run], machine: str) -> None:
    """Write the runs into a JSON file, a line each."""
    lines = ",\n  ".join(json.dumps(asdict(run)) for run in runs)
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(f'{{\n "machine": {json.dumps(machine)},\n "runs": [\n  {lines}\n ]\n}}\n')
    partial.rename(path)


def format_table(runs: Sequence[Run]) -> str:
    """Return a Markdown table: the share of the gap that each run closes, and the loss that is left."""
    alphas = sorted({run.alpha for run in runs})
    head = [
        "start",
        "KV heads",
        "trains",
        "objective",
        "rate",
        "alpha = 0",
        *(f"alpha = {alpha:g}" for alpha in alphas),
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for key in sorted({_key(run) for run in runs}, key=lambda key: (key[0] != "mean", -key[1], *key[2:])):
        same = {run.alpha: run.measured for run in runs if _key(run) == key}
        first = next(iter(same.values()))
        cells = [_cell(same.get(alpha)) for alpha in alphas]
        lost = f"{first['before'] - first['original']:+.3f}"
        lines.append(f"| {' | '.join([*map(str, key[:4]), f'{key[4]:g}', lost, *cells])} |")
    return "\n".join(lines)


def _key(run: Run) -> tuple[str, int, str, str, float]:
    return run.start, run.groups, run.train, run.objective, run.rate


def _cell(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    return f"{measured['after'] - measured['original']:+.3f} ({measured['gap_closed']:.0%})"


_LOOKS = {
    ("attention", "lm"): ("#b34a00", "o", ":"),
    ("attention", "distil"): ("#b34a00", "s", "-"),
    ("all", "lm"): ("#0a66b0", "o", ":"),
    ("all", "distil"): ("#0a66b0", "s", "-"),
}


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw the loss above the original's against alpha at the chosen rates, a panel for each start and KV heads."""
    import matplotlib
    from matplotlib.figure import Figure

    from mha2gqa.pages.figures import INK, LINE, MUTED, STYLE

    colours = {INK: "#1b2126", MUTED: "#5a656e", LINE: "#dcdfe0"}
    style = {key: colours.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    starts = sorted({run.start for run in runs}, key=lambda start: start != "mean")
    groups = sorted({run.groups for run in runs}, reverse=True)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.6 * len(groups), 3.1 * len(starts)), layout="constrained", dpi=110)
        panels = figure.subplots(len(starts), len(groups), squeeze=False, sharex=True, sharey="row")
        for row, start in zip(panels, starts, strict=True):
            for axes, count in zip(row, groups, strict=True):
                _panel(axes, [run for run in runs if (run.start, run.groups) == (start, count)])
                axes.set_title(f"{start}, {count} KV head{'s' * (count > 1)}")
            row[0].set_ylim(bottom=0)  # once all panels of the row are drawn: a limit ends the scaling
        panels[0][0].legend(fontsize=8.5)
        figure.supxlabel("alpha, share of the original's pre-training", fontsize=10)
        figure.supylabel("held-out loss above the original, nats a token", fontsize=10)
        figure.savefig(path, facecolor="#ffffff")


def _panel(axes: Any, runs: Sequence[Run]) -> None:
    for (train, objective), (colour, mark, line) in _LOOKS.items():
        same = sorted(
            (
                one
                for one in runs
                if (one.train, one.objective, one.rate) == (train, objective, RATES[train, objective])
            ),
            key=lambda one: one.alpha,
        )
        if same:
            losses = [same[0].measured["before"], *(one.measured["after"] for one in same)]
            above = [loss - same[0].measured["original"] for loss in losses]
            alphas = [0.0, *(one.alpha for one in same)]
            axes.plot(alphas, above, line, marker=mark, color=colour, label=f"{train}, {objective}")


def main(
    starts: Annotated[str, typer.Option(help="Methods of the conversions, comma-separated.")] = "mean,aligned",
    groups: Annotated[str, typer.Option(help="KV heads of the results.")] = "4,2,1",
    alphas: Annotated[str, typer.Option(help="Fractions of the pre-training; 0 comes with each run.")] = (
        "0.01,0.02,0.05,0.1"
    ),
    trains: Annotated[str, typer.Option(help="What trains.")] = "attention,all",
    objectives: Annotated[str, typer.Option(help="By what.")] = "lm,distil",
    rates: Annotated[str, typer.Option(help="Learning rates to try, instead of the chosen ones.")] = "",
    json_file: Annotated[Path, typer.Option("--json", help="Keep results here; go on with those there.")] = Path(
        "benchmarks/results/alpha.json"
    ),
    plot: Annotated[Path | None, typer.Option(help="Also draw them, as PNG.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    show: Annotated[bool, typer.Option(help="Only show what there is.")] = False,
) -> None:
    """Measure how much of the gap each uptraining of the reference closes."""
    runs = read(json_file)
    if not show:
        import torch

        torch.set_num_threads(threads)
        counts, shares = [int(one) for one in groups.split(",")], [float(one) for one in alphas.split(",")]
        for rate in [float(one) for one in rates.split(",")] if rates else [None]:
            jobs = plan_jobs(starts.split(","), counts, shares, trains.split(","), objectives.split(","), rate)
            runs = complete(runs, jobs, json_file, describe_machine(threads))
    print(format_table(runs))
    if plot:
        draw(runs, plot)


def complete(runs: list[Run], jobs: Iterator[Run], path: Path, machine: str) -> list[Run]:
    """Make the runs that are missing; return all."""
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            if job not in runs:
                done = Run(**asdict(job) | {"measured": measure(job, Path(folder))})
                runs = [*runs, done]
                write(path, runs, machine)
                print(job, done.measured, file=sys.stderr)
    return runs


if __name__ == "__main__":
    typer.run(main)
