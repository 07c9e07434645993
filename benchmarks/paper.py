"""The experiments of the GQA paper in small, on the reference checkpoint: `python benchmarks/paper.py --help`.

    plan_trials  conversions and how long each is trained on: by method (the paper's figure 4), by alpha (figure 5)
    measure      converts, trains on with `mha2gqa uptrain`, and takes the loss of the files on held-out text
    decode       the time of a decode step by number of groups (figure 6)
    main         runs what is not in the JSON file yet, and shows it all (`paper_results.py`)

As in the paper everything trains, on the loss of the text alone, for a fraction alpha of the pre-training. Instead of
T5 XXL and scores of tasks there is a small Llama and its loss.

Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints".
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from paper_results import WAYS, Results, Trial, draw, format_tables
from quality import describe_machine

OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {"method": "mean"},
    "first": {"method": "first"},
    "random": {"method": "random"},
    "aligned": {"method": "aligned", "data": ("none",)},
    "refit": {"method": "aligned", "refine": "refit"},
    "distil": {"method": "aligned", "refine": "distil"},
}
"""Way -> options of `convert`."""
_RATE = 1e-3
_WARM_UP = 2
"""Decode steps that are not counted."""


def plan_trials(
    ways: Sequence[str], groups: Sequence[int], alphas: Sequence[float], table_alpha: float
) -> Iterator[Trial]:
    """Yield every trial once, the untrained ones first.

    Args:
        ways: Methods that are compared on one KV head, after `table_alpha`.
        groups: Numbers of KV heads of the mean that are trained for each of `alphas`.
        alphas: Fractions of the pre-training.
        table_alpha: The one that methods are compared after.
    """
    yield Trial(groups=0, way="original", alpha=0.0)
    wanted = {(1, way, alpha) for way in ways for alpha in (0.0, table_alpha)}
    wanted |= {(count, "mean", alpha) for count in groups for alpha in (0.0, *alphas)}
    for count, way, alpha in sorted(wanted, key=lambda one: (one[2], list(WAYS).index(one[1]), one[0])):
        yield Trial(groups=count, way=way, alpha=alpha)


def measure(trial: Trial, folder: Path, tokens: int, eval_tokens: int) -> dict[str, float]:
    """Return the loss of a trial in nats a token, and the seconds of its training.

    Args:
        trial: What to do.
        folder: Where converted checkpoints lie, so that a trial after another alpha need not convert again.
        tokens: Of calibration text.
        eval_tokens: Of held-out text.
    """
    from mha2gqa.files.source import reference_directory
    from mha2gqa.texts.blocks import held_out_loss
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert

    if trial.way == "original":
        return {"loss": held_out_loss(reference_directory(), eval_tokens), "seconds": 0.0}
    converted = folder / f"{trial.groups}-{trial.way}"
    if not converted.exists():
        convert(ConvertOptions(groups=trial.groups, tokens=tokens, output=converted, **OPTIONS[trial.way]))
    if not trial.alpha:
        return {"loss": held_out_loss(converted, eval_tokens), "seconds": 0.0}
    output = folder / f"{converted.name}-{trial.alpha}"
    seconds = _uptrain(converted, output, trial.alpha)
    return {"loss": held_out_loss(output, eval_tokens), "seconds": seconds}


def _uptrain(converted: Path, output: Path, alpha: float) -> float:
    """Train everything on text, as the paper does; return the seconds."""
    words = ["uptrain", converted, "-o", output, "--alpha", alpha, "--train", "all", "--objective", "lm", "--force"]
    words += ["--trainer", f"learning_rate={_RATE}"]  # the same after every conversion
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "mha2gqa", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def decode(groups: Sequence[int], batch: int, context: int, rounds: int) -> dict[int, list[float]]:
    """Return the seconds of decode steps behind a full context, by number of KV heads; the contenders take turns.

    The reference's shape with random weights, transformers' SDPA with its grouped path, a dynamic cache, float32.

    Args:
        groups: Numbers of KV heads.
        batch: Sequences.
        context: Tokens of cache.
        rounds: Steps of each that are counted.
    """
    steps = {count: _decoder(count, batch, context) for count in groups}
    times: dict[int, list[float]] = {count: [] for count in groups}
    for number in range(_WARM_UP + rounds):
        for count, step in steps.items():
            started = time.perf_counter()
            step()
            if number >= _WARM_UP:
                times[count].append(time.perf_counter() - started)
    return times


def _decoder(groups: int, batch: int, context: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    from mha2gqa.files.source import reference_directory

    config = AutoConfig.from_pretrained(reference_directory(), num_key_value_heads=groups)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(2, batch, groups, context, config.head_dim)
        cache.update(keys, values, layer)
    ids = torch.zeros(batch, 1, dtype=torch.int64)

    @torch.inference_mode()
    def step() -> None:
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def main(
    ways: Annotated[str, typer.Option(help="Methods to compare on one KV head, comma-separated.")] = ",".join(OPTIONS),
    groups: Annotated[str, typer.Option(help="KV heads to train for each alpha.")] = "2,1",
    alphas: Annotated[str, typer.Option(help="Fractions of the pre-training.")] = "0.01,0.02,0.05,0.1",
    table_alpha: Annotated[float, typer.Option(help="The fraction that methods are compared after.")] = 0.05,
    tokens: Annotated[int, typer.Option(help="Calibration tokens, at most.")] = 65_536,
    eval_tokens: Annotated[int, typer.Option(help="Evaluation tokens, at most.")] = 50_000,
    batch: Annotated[int, typer.Option(help="Sequences of the decode steps.")] = 32,
    context: Annotated[int, typer.Option(help="Tokens of cache behind them.")] = 511,
    rounds: Annotated[int, typer.Option(help="Decode steps to count; 0 times none.")] = 40,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Keep results here; go on with those there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them, as PNG.")] = None,
    show: Annotated[bool, typer.Option(help="Measure nothing; show the results of --json.")] = False,
) -> None:
    """Measure what the GQA paper measured, in small."""
    import torch

    torch.set_num_threads(threads)
    settings = {"tokens": tokens, "eval_tokens": eval_tokens, "batch": batch, "context": context}
    known = json_file is not None and json_file.exists()
    results = Results.read(json_file) if known and json_file else Results(describe_machine(threads), settings)
    if not show:
        if results.settings != settings:
            sys.exit(f"error: {json_file} was measured with {json.dumps(results.settings)}")
        if rounds and not results.times:
            results.times = decode([8, 4, 2, 1], batch, context, rounds)
        fractions = [float(one) for one in alphas.split(",") if one]
        counts = [int(one) for one in groups.split(",") if one]
        trials = plan_trials(list(filter(None, ways.split(","))), counts, fractions, table_alpha)
        _complete(results, trials, json_file)
    print(format_tables(results, table_alpha))
    if plot:
        draw(results, table_alpha, plot)


def _complete(results: Results, trials: Iterator[Trial], path: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials:
            if trial not in results.trials:
                found = measure(trial, Path(folder), results.settings["tokens"], results.settings["eval_tokens"])
                results.add(trial, found)
                print(f"{trial} {found}", file=sys.stderr)
                if path:
                    results.write(path)


if __name__ == "__main__":
    typer.run(main)
