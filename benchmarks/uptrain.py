"""What uptraining costs beside plain fine-tuning: `python benchmarks/uptrain.py --help`.

Three ways take turns on the same model and the same batches, each in a process of its own: transformers' own Trainer
(cross-entropy, all parameters), our `lm` (all), and our `distil` (all, then attention alone). Tokens per second are
those of the steps behind the first two; peak memory is that of the process (on an accelerator: of its allocator).
The share of peak FLOP/s is 6 N D for training and 2 N D for the original's pass, over `--peak` where that is given.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

WAYS = {
    "plain Trainer": (None, "all"),
    "lm, all": ("lm", "all"),
    "distil, all": ("distil", "all"),
    "lm, attention": ("lm", "attention"),
    "distil, attention": ("distil", "attention"),
}
"""Objective and what trains; none is transformers' Trainer as it is."""
_WARM_UP = 2


def measure(arguments: str) -> dict[str, Any]:
    """Train for some steps in this process; return seconds a step, tokens a step, and the peak of memory in bytes."""
    import torch
    from transformers import Trainer, TrainerCallback

    from mha2gqa.progress import QUIET
    from mha2gqa.verbs.uptrain.options import UptrainOptions
    from mha2gqa.verbs.uptrain.plan import plan_job
    from mha2gqa.verbs.uptrain.text import prepare_text
    from mha2gqa.verbs.uptrain.trainer import UptrainTrainer

    content = json.loads(arguments)
    objective, train = WAYS[content["way"]]
    if content["threads"]:
        torch.set_num_threads(content["threads"])
    trainer = {"eval_strategy": "no", "save_strategy": "no", "per_device_train_batch_size": content["batch"]}
    trainer |= {"use_cpu": True} if content["cpu"] else {}
    with tempfile.TemporaryDirectory() as folder:
        options = UptrainOptions(
            converted=Path(content["converted"]),
            output=Path(folder) / "out",
            steps=content["steps"],
            data=tuple(content.get("data", ())),
            objective=objective or "lm",  # type: ignore[arg-type]
            train=train,  # type: ignore[arg-type]
            trainer=trainer,
        )
        job = plan_job(options)
        job.load()
        if job.subject.objective == "lm":
            job.original = None
        (Path(folder) / "work").mkdir()
        text = prepare_text(Path(folder) / "work", job.reading, job.original, QUIET)
        stamps: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *arguments: Any, **others: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                stamps.append(time.perf_counter())

        chosen: Trainer = (
            UptrainTrainer(job, text)
            if objective
            else Trainer(
                model=job.student, args=job.arguments, train_dataset=text.training, data_collator=job.task.collate
            )
        )
        chosen.add_callback(Clock())
        chosen.train()
    steps = [after - before for before, after in itertools.pairwise(stamps)][_WARM_UP:]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() and not content["cpu"] else _peak()
    return {
        "step": statistics.median(steps),
        "tokens": job.length.tokens_per_step,
        "peak": peak,
        "parameters": job.parameters["all"],
    }


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def main(
    converted: Annotated[Path | None, typer.Argument(help="Converted reference; by default GQA-4 by the mean.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 12,
    rounds: Annotated[int, typer.Option(help="How often each way takes its turn.")] = 3,
    batch: Annotated[int, typer.Option(help="Blocks a step.")] = 4,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    cpu: Annotated[bool, typer.Option(help="Use the CPU even where there is an accelerator.")] = False,
    peak: Annotated[float | None, typer.Option(help="Peak FLOP/s of the accelerator, for the share of it.")] = None,
) -> None:
    """Compare the speed and memory of uptraining with those of plain fine-tuning."""
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert

    with tempfile.TemporaryDirectory() as folder:
        directory = converted or Path(folder) / "converted"
        if converted is None:
            convert(ConvertOptions(groups=4, output=directory))
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way in list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]:
                job = {"way": way, "converted": str(directory), "steps": steps, "batch": batch}
                found[way].append(_run(job | {"threads": threads, "cpu": cpu}))
                print(way, found[way][-1], file=sys.stderr)
    print(format_table(found, peak))


def _run(job: dict[str, Any]) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, __file__, json.dumps(job)], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"error: {job['way']}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def format_table(found: dict[str, list[dict[str, Any]]], peak: float | None) -> str:
    """Return a Markdown table of medians and ranges over the rounds, each round beside its own plain Trainer."""
    plain = [one["step"] for one in found["plain Trainer"]]
    lines = ["| way | tokens/s | step time to plain | peak MB |", "|---|---|---|---|"]
    for way, runs in found.items():
        speeds = sorted(one["tokens"] / one["step"] for one in runs)
        ratios = sorted(one["step"] / base for one, base in zip(runs, plain, strict=True))
        memory = statistics.median(one["peak"] for one in runs) / 1e6
        share = ""
        if peak:
            passes = 8 if "distil" in way else 6
            share = f", {passes * runs[0]['parameters'] * statistics.median(speeds) / peak:.1%} of peak FLOP/s"
        lines.append(
            f"| {way} | {statistics.median(speeds):,.0f} ({speeds[0]:,.0f}-{speeds[-1]:,.0f}){share} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) | {memory:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(measure(sys.argv[1])))
    else:
        typer.run(main)
