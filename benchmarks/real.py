"""What conversions of real checkpoints cost: `python benchmarks/real.py --help`.

    python benchmarks/real.py ./SmolLM2-135M-Instruct --groups 1 --data wiki.txt --json results.json --plot real.png

Each way to convert is a process of its own (`real_job.py`): seconds and peak memory of the conversion, then loss, KL
and top-1 on text that it has not seen, and up to which token greedy answers are the original's. What is in the JSON
file already is not run again, so the command goes on where it was stopped. Text to evaluate on is the last part of
`--data`, unless `--eval` names some.
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from quality import describe_machine
from real_job import BITS, Job, run
from ways import WAYS

from mha2gqa.verbs.convert.options import STEPS

_EVALUATION = 0.4
"""Share of the text, at its end, that is evaluated on."""


def texts(data: Sequence[Path], evaluation: Sequence[Path], folder: Path) -> tuple[str, str]:
    """Return files of the text to calibrate on and of that to evaluate on, which have nothing in common."""
    whole = "".join(path.read_text(encoding="utf-8") for path in data)
    cut = len(whole) if evaluation else int(len(whole) * (1 - _EVALUATION))
    held_out = "".join(path.read_text(encoding="utf-8") for path in evaluation) or whole[cut:]
    found = folder / "calibration.txt", folder / "evaluation.txt"
    for path, text in zip(found, (whole[:cut], held_out), strict=True):
        path.write_text(text, encoding="utf-8")
    return str(found[0]), str(found[1])


class Results:
    """What was measured, and where it is kept."""

    def __init__(self, path: Path | None, threads: int | None) -> None:
        self._path = path
        self.content: dict[str, Any] = {"machine": describe_machine(threads), "commands": [], "runs": []}
        if path is not None and path.exists():
            self.content = json.loads(path.read_text())

    def find(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Return what was measured of a job before."""
        return next((one for one in self.content["runs"] if one["asked"] == asked), None)

    def add(self, asked: dict[str, Any], measured: dict[str, Any]) -> None:
        """Keep what was measured of a job."""
        self.content["runs"].append({"asked": asked, **measured})
        self.write()

    def say(self, command: str) -> None:
        """Keep the command that was given."""
        if command not in self.content["commands"]:
            self.content["commands"].append(command)

    def write(self) -> None:
        """Write the file, where there is one."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.content, indent=1) + "\n")


def table(content: dict[str, Any]) -> str:
    """Return all runs as a table, model by model, losses also as shares of what a mean loses."""
    lines = []
    for model, groups in dict.fromkeys((one["asked"]["model"], one["asked"]["groups"]) for one in content["runs"]):
        runs = [one for one in content["runs"] if (one["asked"]["model"], one["asked"]["groups"]) == (model, groups)]
        refused = [one for one in runs if "refused" in one]
        runs = [one for one in runs if "refused" not in one]
        lines += [f"{model}, {groups} KV heads: {WAYS[one['asked']['way']].label}: {one['refused']}" for one in refused]
        if not runs:
            continue
        mean = next((one["loss"] - one["original"] for one in runs if one["asked"]["way"] == "mean"), None)
        original, before = runs[0]["original"], runs[0]["cache_before"]
        of_bits = next((one for one in runs if "original_quantised" in one), runs[0])
        tasks: dict[str, float] = next((one["original_tasks"] for one in runs if one.get("original_tasks")), {})
        columns = ["way", "loss", *(f"{bits}-bit cache" for bits in BITS)]
        columns += ["KL", "top-1", "same tokens", *tasks, "bytes", "s", "peak MB"]
        lines += [
            f"{model}, {groups} KV heads; original {original:.3f} nats a token, {before:,} bytes a token",
            "",
            f"| {' | '.join(columns)} |",
            f"|{'---|' * len(columns)}",
            f"| the original | | {' | '.join(_quantised(of_bits, 'original_quantised'))} | | | | "
            + "".join(f"{score:.3f} | " for score in tasks.values())
            + f"{before:,} | | |",
        ]
        lines += [_row(one, mean, list(tasks)) for one in runs]
        lines.append("")
    return "\n".join(lines)


def _told(one: dict[str, Any]) -> str:
    """Return the loss of one run, or why there is none."""
    return one["refused"] if "refused" in one else f"{one['loss'] - one['original']:+.3f}"


def _row(one: dict[str, Any], mean: float | None, tasks: Sequence[str]) -> str:
    above = one["loss"] - one["original"]
    cells = [WAYS[one["asked"]["way"]].label, f"{above:+.3f}{f' ({above / mean:.1%})' if mean else ''}"]
    cells += [*_quantised(one, "quantised"), f"{one['kl']:.3f}", f"{one['top1']:.1%}", f"{one['same_tokens']:.1f}"]
    scores = one.get("tasks", {})  # runs of earlier calls may have been asked for others, or for none
    cells += [f"{scores[task]:.3f}" if task in scores else "" for task in tasks]
    cells += [f"{one['cache']:,}", f"{one['seconds']:.0f}", f"{one['peak'] / 1e6:.0f}"]
    return f"| {' | '.join(cells)} |"


def _quantised(one: dict[str, Any], key: str) -> list[str]:
    # Runs of earlier versions did not measure it.
    losses = one.get(key, {})
    return [f"{losses[str(bits)] - one['original']:+.3f}" if losses else "" for bits in BITS]


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw the losses of every model as bars, on a scale of powers of ten."""
    from matplotlib.figure import Figure

    shown = [one for one in content["runs"] if "refused" not in one]
    models = list(dict.fromkeys(one["asked"]["model"] for one in shown))
    figure = Figure(figsize=(7, 0.8 + 2.6 * len(models)), layout="constrained")
    for axes, model in zip(figure.subplots(len(models), squeeze=False).flat, models, strict=True):
        runs = [one for one in shown if one["asked"]["model"] == model]
        labels = [f"{WAYS[one['asked']['way']].label}, {one['asked']['groups']}" for one in runs]
        bars = axes.barh(labels, [max(1e-3, one["loss"] - one["original"]) for one in runs], color="#4c78a8")
        axes.bar_label(bars, [f"{one['loss'] - one['original']:+.3f}" for one in runs], padding=3, fontsize=8)
        axes.set(xscale="log", title=model, xlabel="nats a token above the original")
        axes.invert_yaxis()
        axes.margins(x=0.15)
    figure.savefig(path, dpi=150)


def main(
    models: Annotated[list[str], typer.Argument(help="Directories or Hub ids.")],
    data: Annotated[list[Path], typer.Option(help="Text to calibrate on; its last 40 % serve to evaluate.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option("--eval", help="Text to evaluate on, then all of it.")
    ] = None,
    groups: Annotated[str, typer.Option(help="KV heads of the results, comma-separated.")] = "1",
    ways: Annotated[str, typer.Option(help="Ways to convert, comma-separated.")] = ",".join(WAYS),
    tokens: Annotated[int, typer.Option(help="Calibration tokens, at most.")] = 32_768,
    eval_tokens: Annotated[int, typer.Option(help="Evaluation tokens, at most.")] = 8192,
    context: Annotated[int, typer.Option(help="Tokens of a block.")] = 512,
    steps: Annotated[int, typer.Option(help="Training steps of distil and joint.")] = STEPS,
    seed: Annotated[int, typer.Option(help="Of everything that draws numbers.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-evaluation-harness, comma-separated.")] = "",
    task_path: Annotated[Path | None, typer.Option(help="Directory with tasks of your own.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Keep results here; go on with those there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them, as PNG.")] = None,
) -> None:
    """Measure what every way to convert costs real models, in quality, time and memory."""
    if unknown := [way for way in ways.split(",") if way not in WAYS]:
        sys.exit(f"error: no way is called {', '.join(unknown)}; there are {', '.join(WAYS)}")
    found = Results(json_file, threads)
    words = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
    found.say(f"python benchmarks/real.py {shlex.join(words)}")
    settings: dict[str, Any] = {
        "tokens": tokens,
        "eval_tokens": eval_tokens,
        "context": context,
        "steps": steps,
        "threads": threads,
    }
    if tasks:
        settings |= {"tasks": tasks.split(","), "task_path": str(task_path) if task_path else None}
    with tempfile.TemporaryDirectory() as folder:
        calibration, held_out = texts(data, evaluation or [], Path(folder))
        for model in models:
            for count, way in ((count, way) for count in map(int, groups.split(",")) for way in ways.split(",")):
                asked = {"model": Path(model).name, "groups": count, "way": way, "seed": seed, **settings}
                if found.find(asked) is None:
                    job = Job(
                        model=model, groups=count, way=way, seed=seed, calibration=calibration, evaluation=held_out,
                        work=folder, **settings,
                    )  # fmt: skip
                    found.add(asked, run(job))
                    print(f"{Path(model).name}, {count}: {way}: {_told(found.content['runs'][-1])}", file=sys.stderr)
    print(table(found.content))
    if plot is not None:
        draw(found.content, plot)


if __name__ == "__main__":
    typer.run(main)
