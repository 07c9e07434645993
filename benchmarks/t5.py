"""The GQA paper's own setting in small, a T5: `pip install rouge-score; python benchmarks/t5.py --help`.

    plan_trials  the original, conversions of its decoder, and each trained on for a fraction alpha of the pre-training
    measure      converts, trains with `mha2gqa uptrain`, and has the result answer held-out sources
    token_times  processor time of a generated token by number of KV heads, in checkpoints of the same shape
    main         pre-trains the original (`t5_task.py`), runs what is not in the JSON file yet, and shows it all

As in the paper decoder self-attention and cross-attention are converted, everything trains on the targets, and there is
distillation beside it. Instead of T5 XXL and eight tasks there is a T5 of a million parameters and one task.

Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints".
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from quality import describe_machine
from t5_results import Results, Trial, format_tables
from t5_task import BATCH, HELD_OUT, SOURCE_TOKENS, TARGET_TOKENS, TRAINING, answer, generate, pretrain, write_task

OBJECTIVES = ("", "lm", "distil")
_BATCH, _SOURCE, _NEW, _ROUNDS = 32, 512, 32, 5
"""Of the timing: sequences, tokens of a source, tokens that are generated, rounds."""


def plan_trials() -> Iterator[Trial]:
    """Yield every trial, those without training first."""
    yield Trial(groups=8)
    for objective in OBJECTIVES:
        for groups in (4, 2, 1):
            yield Trial(groups=groups, method="mean", objective=objective)
    for method in ("first", "random"):
        for objective in ("", "lm"):
            yield Trial(groups=1, method=method, objective=objective)


def measure(trial: Trial, folder: Path, alpha: float, pretraining_tokens: int) -> dict[str, float]:
    """Return the loss, ROUGE-L and exact matches of a trial, and the seconds of its training.

    Args:
        trial: What to do.
        folder: With the task and the original; converted checkpoints stay here.
        alpha: Fraction of the pre-training.
        pretraining_tokens: Its tokens.
    """
    from mha2gqa import ConvertOptions, convert

    if not trial.method:
        return answer(folder / "original", folder) | {"seconds": 0.0}
    converted = folder / f"{trial.groups}-{trial.method}"
    if not converted.exists():
        options: Any = {"groups": trial.groups, "method": trial.method, "output": converted}
        convert(ConvertOptions(model=str(folder / "original"), **options))
    if not trial.objective:
        return answer(converted, folder) | {"seconds": 0.0}
    output = folder / f"{converted.name}-{trial.objective}"
    started = time.monotonic()
    _uptrain(converted, output, folder, {"objective": trial.objective, "alpha": alpha}, pretraining_tokens)
    return {"seconds": round(time.monotonic() - started)} | answer(output, folder)


def _uptrain(converted: Path, output: Path, folder: Path, how: dict[str, Any], tokens: int) -> None:
    """Train everything, in batches as in the pre-training, at the default learning rate; measure at the ends alone."""
    from mha2gqa import UptrainOptions, uptrain

    trainer = {"use_cpu": True, "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH}
    uptrain(
        UptrainOptions(
            converted=converted,
            output=output,
            data=(str(folder / TRAINING),),
            held_out=(str(folder / HELD_OUT),),
            context=SOURCE_TOKENS,
            target_context=TARGET_TOKENS,
            train="all",
            pretraining_tokens=str(tokens),
            trainer=trainer | {"eval_steps": 10**6, "save_steps": 10**6},
            force=True,
            **how,
        )
    )


def token_times(folder: Path, groups: list[int]) -> dict[int, list[float]]:
    """Return the processor seconds of a generated token of 32 sequences behind 512 tokens; checkpoints take turns."""
    import torch

    from mha2gqa.model.load import load_model

    names = {count: "original" if count == 8 else f"{count}-mean" for count in groups}
    models: dict[int, Any] = {count: load_model(folder / name) for count, name in names.items()}
    ids_BT = torch.randint(2, 2048, (_BATCH, _SOURCE), generator=torch.Generator().manual_seed(0))
    times: dict[int, list[float]] = {count: [] for count in groups}
    for number in range(_ROUNDS + 1):
        for count, model in models.items():
            spent = []
            for tokens in (1, 1 + _NEW):  # the encoder's pass is in both
                started = time.process_time()
                generate(model, tokens, input_ids=ids_BT)
                spent.append(time.process_time() - started)
            if number:
                times[count].append(round((spent[1] - spent[0]) / _NEW, 6))
    return times


def main(
    folder: Annotated[Path, typer.Option(help="Where the task and the checkpoints are kept.")],
    json_file: Annotated[Path, typer.Option("--json", help="Keep results here; go on with those there.")],
    epochs: Annotated[float, typer.Option(help="Passes of the pre-training over the pairs.")] = 4.4,
    alpha: Annotated[float, typer.Option(help="Fraction of the pre-training to train conversions for.")] = 0.05,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    show: Annotated[bool, typer.Option(help="Measure nothing; show the results.")] = False,
) -> None:
    """Measure what the GQA paper's table 1 shows, in small."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    if not show:
        results = _begun(folder, json_file, {"epochs": epochs, "alpha": alpha}, threads)
        for trial in plan_trials():
            if trial not in results.trials:
                found = measure(trial, folder, alpha, int(results.original["tokens"]))
                results.trials.append(Trial(**{**vars(trial), "measured": found}))
                print(f"{results.trials[-1]}", file=sys.stderr)
                results.write(json_file)
        if not results.times:
            results.times = token_times(folder, [8, 4, 2, 1])
            results.write(json_file)
    print(format_tables(Results.read(json_file)))


def _begun(folder: Path, path: Path, settings: dict[str, float], threads: int) -> Results:
    """Return the results so far, with the original at least."""
    if path.exists():
        results = Results.read(path)
        if results.settings != settings:
            sys.exit(f"error: {path} was measured with {results.settings}")
        return results
    if not (folder / TRAINING).exists():
        write_task(folder)
    results = Results(describe_machine(threads), settings, pretrain(folder, folder / "original", settings["epochs"]))
    results.write(path)
    return results


if __name__ == "__main__":
    typer.run(main)
