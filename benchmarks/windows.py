"""Loss against the cache that is left, for windows, heads and latents: `python benchmarks/windows.py --help`.

Converts a checkpoint in each way of `WAYS` by the command that users have, and lets `verify` measure the loss above the
original's on held-out text, with the 95 % interval of the paired difference. The cache is that of a text as long as the
model reads. Ways that the JSON file holds already are not measured again; a result is kept as soon as it is there.
"""

import json
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from quality import describe_machine

WAYS = (
    "--window 256",
    "--window 128",
    "--window 64",
    "--window 64 --window-layers 0-2",
    "--groups 4 --method aligned --tokens 64K",
    "--groups 2 --method aligned --tokens 64K",
    "--groups 4 --method aligned --tokens 64K --window 64 --window-layers 0-2",
    "--groups 4 --method aligned --tokens 64K --window 128",
    "--groups auto --cache 50% --method aligned --tokens 64K",
    "--groups auto --cache 25% --method aligned --tokens 64K",
    "--groups 2,2,4,8 --method aligned --tokens 64K --window 64 --window-layers 0-2",
    "--cache 15% --window 64 --method aligned --tokens 64K",
    "--cache 25% --window 64 --method aligned --tokens 64K",
    "--latent-like-groups 4 --tokens 64K",
    "--latent-like-groups 2 --tokens 64K",
    "--latent-like-groups 1 --tokens 64K",
    "--groups 1 --method aligned --tokens 64K",
    "--groups 4 --method aligned --tokens 64K --refine distil",
    "--groups 2,2,4,8 --method aligned --tokens 64K --refine distil",
    "--groups 2 --method aligned --tokens 64K --refine distil",
    "--groups 1,1,2,4 --method aligned --tokens 64K --refine distil",
    "--groups 4 --method aligned --tokens 64K --refine distil --window 64 --window-layers 0-2",
    "--groups 2,2,2,4 --method aligned --tokens 64K --refine distil --window 64 --window-layers 0-2",
    "--latent-like-groups 4 --tokens 64K --refine distil",
    "--latent-like-groups 2 --tokens 64K --refine distil",
    "--latent-like-groups 1 --tokens 64K --refine distil",
)
"""What is added to `mha2gqa convert MODEL`, for a model of four layers with eight heads that reads 512 tokens."""
_READERS = ("aligned", "auto", "--latent", "--latent-like-groups")
"""Words of a way that reads text."""


def shortened(model: str, context: int, folder: Path) -> str:
    """Return a copy of a checkpoint whose config says that it reads so many tokens."""
    copy = Path(shutil.copytree(model, folder / Path(model).name))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    return str(copy)


def measure(
    model: str | None, way: str, data: tuple[str, ...], evaluation: tuple[str, ...], tokens: int, folder: Path
) -> dict[str, Any]:
    """Convert in one way, and compare the outputs on text for evaluation."""
    from typer.testing import CliRunner

    from mha2gqa import VerifyOptions, verify
    from mha2gqa.cli import app
    from mha2gqa.reference.corpus import calibration_files

    output = folder / "out"
    words = ["convert", *([model] if model else []), *shlex.split(way), "--output", str(output), "--force", "--json"]
    calibration = data or (() if model else tuple(map(str, calibration_files())))
    words += [word for one in calibration for word in ("--data", one)] if {*_READERS} & {*way.split()} else []
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    made = json.loads(result.stdout)
    report = verify(VerifyOptions(converted=output, data=evaluation, tokens=tokens, levels=("outputs",)))
    if report.outputs is None or report.outputs.loss is None:
        raise typer.BadParameter(f"{model} has no next token to predict")
    loss, whole = report.outputs.loss, made["cache_at"] or {0: (made["cache_before"], made["cache_after"])}
    before, after = next(iter(whole.values()))
    found = {"heads": made.get("heads_after"), "class": made["model_type"], "trials": made["trials"]}
    return found | {"cache": after / before, "loss": loss.difference, "interval": loss.interval}


def format_table(runs: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table, the largest cache first."""
    lines = ["| convert | class | cache | loss, nats a token |", "|---|---|---|---|"]
    for way, run in sorted(runs.items(), key=lambda one: -one[1]["cache"]):
        heads = f" ({run['heads']})" if "auto" in way else ""
        low, high = run["interval"] or (float("nan"),) * 2
        loss = f"{run['loss']:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(f"| `{way}`{heads} | {run['class']} | {run['cache']:.1%} | {loss} |")
    return "\n".join(lines)


_KINDS = {"windows": "#4c78a8", "heads": "#f58518", "windows and heads": "#54a24b", "latents": "#b279a2"}


def kind(way: str) -> str:
    """Return the one of `_KINDS` that a way is of."""
    words = {*way.split()}
    both = [name for name, word in (("windows", "--window"), ("heads", "aligned")) if word in words]
    return " and ".join(both) or "latents"


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the losses against the caches, with their intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, color in _KINDS.items():
        of_kind = [(way, run) for way, run in runs.items() if kind(way) == name]
        x, y = ([run[key] for _, run in of_kind] for key in ("cache", "loss"))
        spread = [[abs(run["interval"][side] - run["loss"]) for _, run in of_kind] for side in (0, 1)]
        axes.errorbar(x, y, yerr=spread, fmt="o", capsize=3, color=color, label=name)
        for way, run in of_kind:
            label = re.sub(r"--method aligned|--tokens \S+|--refine|--", "", way)
            axes.annotate(
                " ".join(label.split()),
                (run["cache"], run["loss"]),
                (-6 if name == "heads" else 6, 4),  # points of two kinds often lie side by side
                textcoords="offset points",
                ha="right" if name == "heads" else "left",
                fontsize=7,
            )
    axes.set(xlabel="KV cache that is left", ylabel="nats a token above the original", ylim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(0, 1.3 * max(run["cache"] for run in runs.values()))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(
    model: Annotated[str | None, typer.Argument(help="Checkpoint. Default: the reference.")] = None,
    way: Annotated[list[str] | None, typer.Option(help="Instead of those for the reference; repeatable.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Text to calibrate on and to choose by; repeatable.")] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="Text to measure on; repeatable. Default: that of --data.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 18_432,
    context: Annotated[int | None, typer.Option(help="Tokens that it reads; of a local checkpoint.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Keep results here; go on with those there.")] = Path(
        "benchmarks/results/windows.json"
    ),
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    show: Annotated[bool, typer.Option(help="Only show what there is.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw it, as PNG.")] = None,
) -> None:
    """Measure what each way to keep less cache loses."""
    if context and model is None:
        raise typer.BadParameter("--context is for a checkpoint that is named; the reference reads what it reads")
    runs = json.loads(json_file.read_text())["runs"] if json_file.exists() else {}
    if not show:
        import torch

        torch.set_num_threads(threads)
        for one in way or WAYS:
            if one in runs:
                continue
            with tempfile.TemporaryDirectory() as folder:
                read = shortened(model, context, Path(folder)) if model and context else model
                runs[one] = measure(read, one, tuple(data or ()), tuple(evaluation or data or ()), tokens, Path(folder))
            content = {"machine": describe_machine(threads), "tokens": tokens, "context": context, "runs": runs}
            json_file.write_text(json.dumps(content, indent=1) + "\n")
    print(format_table(runs))
    if plot is not None:
        draw(runs, plot)


if __name__ == "__main__":
    typer.run(main)
