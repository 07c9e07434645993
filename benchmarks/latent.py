"""Latent attention beside fewer KV heads at the same cache: loss above the original's, in nats a token.

    python benchmarks/latent.py                                  # the reference checkpoint, its own texts
    python benchmarks/latent.py CHECKPOINT --data TEXT           # the last two fifths of the text are evaluated on
    python benchmarks/latent.py --shares 4 --ways latent,latent-refit --rope free

A cache of C + R numbers a token and layer is held against that of as many numbers of GQA, G (E + F). The width R of the
shared rotary key is chosen by loss on the last eighth of the calibration text, which latent ways learn nothing from.

    mean, aligned, refit, distil            GQA, on the calibration text but for the mean
    svd, pca                                others' low-rank caches (`latent_baselines.py`)
    latent, latent-refit, latent-distil     the package's

`svd` has no class that would run it from such a cache: it is what its bytes would allow.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from latent_ways import MAKERS, Subject

from mha2gqa.files.source import find_source
from mha2gqa.texts.blocks import mean_loss


def main() -> None:
    """Measure, and print a table for each checkpoint."""
    options = _options()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name in options.checkpoint or [None]:
        subject = Subject(find_source(name).directory, options)
        for row in measured(subject):
            rows.append(row)
            loss = "       -" if row["loss"] is None else f"{row['loss']:+8.4f}"
            print(f"{row['cache']:5d} {row['way']:14s} {loss}  {row['seconds']:6.0f} s  {row['key']}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(subject: Subject) -> Iterator[dict[str, Any]]:
    """Yield what each way loses at each cache."""
    base, whole = mean_loss(subject.original, subject.evaluation), subject.whole_cache
    tokens = sum(batch.numel() for batch in subject.evaluation)
    print(f"{subject.directory.name}: {base:.4f} nats over {tokens:,} tokens, {whole} numbers a token and layer")
    for share in subject.options.shares:
        cache = whole // share
        for way in subject.options.ways:
            started = time.perf_counter()
            model = MAKERS[way](subject, cache)
            seconds = time.perf_counter() - started
            trial = subject.trials.get(cache) if way.startswith("latent") else None
            yield {
                "checkpoint": subject.directory.name,
                "original": base,
                "cache": cache,
                "way": way,
                "loss": None if model is None else mean_loss(model, subject.evaluation) - base,
                "seconds": seconds,
                "key": f"R {trial.key.width}, {trial.key.kind}" if trial else "",
            }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="*", help="directories or Hub ids; none is the reference checkpoint")
    parser.add_argument("--data", action="append", help="text files to calibrate and evaluate on")
    parser.add_argument("--shares", type=_numbers, default=[2, 4, 8], help="caches, as the original's divided by these")
    parser.add_argument("--ways", type=_names, default=list(MAKERS), help=", ".join(MAKERS))
    parser.add_argument("--rope", choices=("portable", "free"), default="portable")
    parser.add_argument("--widths", type=_numbers, help="R to choose among")
    parser.add_argument("--tokens", type=int, default=16_384, help="of calibration text, at most")
    parser.add_argument("--eval-tokens", type=int, default=16_384)
    parser.add_argument("--context", type=int, default=256, help="tokens of a block")
    parser.add_argument("--steps", type=int, default=300, help="of distillation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := [way for way in options.ways if way not in MAKERS]:
        parser.error(f"no way is called {', '.join(unknown)}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
