"""Latent attention beside fewer KV heads at the same cache: loss above the original's, in nats a token.

    python benchmarks/latent.py                                  # the reference checkpoint, its own texts
    python benchmarks/latent.py CHECKPOINT --data TEXT           # the last two fifths of the text are evaluated on
    python benchmarks/latent.py --shares 4 --ways latent,latent-refit --rope free --widths 48
    python benchmarks/latent.py --show                           # the table of what was measured

A cache of C + R numbers a token and layer is held against that of as many numbers of GQA, G (E + F). The width R of the
shared rotary key is chosen by loss on the last eighth of the calibration text, which latent ways learn nothing from.

    mean, aligned, refit, distil            GQA, on the calibration text but for the mean
    svd, pca                                others' low-rank caches (`latent_baselines.py`)
    latent, latent-refit, latent-distil     the package's

`svd` has no class that would run it from such a cache: it is what its bytes would allow. Intervals are of the paired
difference, 95 %, over blocks. What the JSON file has is not measured again, and its rotary keys are not chosen again.
"""

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from latent_ways import MAKERS, Subject, token_losses
from real import Results

from mha2gqa.files.source import find_source
from mha2gqa.verbs.convert.options import STEPS
from mha2gqa.verbs.verify.metrics import bootstrap

_PARTS = 8
"""Of a block, by which losses by position are told."""


def main() -> None:
    """Measure what is not there yet, and print a table."""
    options = _options()
    torch.set_num_threads(options.threads)
    found = Results(options.json, options.threads)
    if not options.show:
        words = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
        found.say(f"python benchmarks/latent.py {shlex.join(words)}")
        for name in options.checkpoint or [None]:
            _complete(found, Subject(find_source(name).directory, options))
    print("\n".join(_table(found.content["runs"])))


def _complete(found: Results, subject: Subject) -> None:
    """Measure what each way loses at each cache, as far as that is not known."""
    for share, way in itertools.product(subject.options.shares, subject.options.ways):
        cache = subject.whole_cache // share
        asked = _asked(subject, cache, way)
        if found.find(asked) is not None:
            continue
        if way.startswith("latent"):
            _remember(found, subject, asked)
        started = time.perf_counter()
        model = MAKERS[way](subject, cache)
        measured: dict[str, Any] = {"seconds": time.perf_counter() - started}
        if model is not None:
            measured |= _losses(subject.original_losses, token_losses(model, subject.evaluation))
        if way.startswith("latent"):
            trial = subject.trials[cache]
            measured["key"] = {"width": trial.key.width, "name": trial.key.name, "aside": trial.loss}
        found.add(asked, measured)
        print(asked["checkpoint"], cache, way, {name: measured.get(name) for name in ("loss", "key")}, flush=True)


def _asked(subject: Subject, cache: int, way: str) -> dict[str, Any]:
    """Return what tells a measurement from others."""
    options = subject.options
    asked = {"checkpoint": subject.name, "whole": subject.whole_cache, "cache": cache, "way": way}
    asked |= {name: getattr(options, name) for name in ("tokens", "eval_tokens", "context")}
    if way.startswith("latent"):
        asked["rope"] = options.rope
    return asked | ({"steps": options.steps} if way.endswith("distil") else {})


def _remember(found: Results, subject: Subject, asked: dict[str, Any]) -> None:
    """Take over the rotary key that another latent way has chosen for the same cache."""
    told = ("checkpoint", "cache", "tokens", "context", "rope")
    for run in found.content["runs"]:
        if "key" in run and all(run["asked"][name] == asked[name] for name in told):
            subject.take(asked["cache"], **run["key"])


def _losses(original_NT: torch.Tensor, losses_NT: torch.Tensor) -> dict[str, Any]:
    """Return the mean loss above the original's, its interval, and by position."""
    above_NT = losses_NT - original_NT
    parts = zip(original_NT.tensor_split(_PARTS, dim=1), above_NT.tensor_split(_PARTS, dim=1), strict=True)
    return {
        "original": original_NT.mean().item(),
        "loss": above_NT.mean().item(),
        "interval": bootstrap(above_NT.mean(dim=1), seed=0),
        "by_position": [[float(one.mean()) for one in part] for part in parts],
    }


def _table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table: loss, its interval, as a share of what `aligned` loses, and from first to last tokens."""
    yield "| checkpoint | cache | way | loss | of aligned's | first and last eighth of a block | s |"
    yield "|---|---|---|---|---|---|---|"
    same = ("checkpoint", "cache", "tokens", "eval_tokens", "context")
    for run in sorted(runs, key=lambda run: (run["asked"]["checkpoint"], -run["asked"]["cache"])):
        asked = run["asked"]
        if "loss" not in run:
            continue
        beside = [one for one in runs if one["asked"]["way"] == "aligned"]
        beside = [one for one in beside if "loss" in one and all(one["asked"][it] == asked[it] for it in same)]
        share = f"{run['loss'] / beside[0]['loss']:.0%}" if beside else ""
        key = f" (R = {run['key']['width']}, {asked['rope']})" if "key" in run else ""
        low, high = run["interval"] or (float("nan"),) * 2
        ends = " and ".join(f"{run['by_position'][end][1]:+.4f}" for end in (0, -1))
        cache = f"{asked['cache']} of {asked['whole']}"
        loss = f"{run['loss']:+.4f} ({low:+.4f} to {high:+.4f})"
        way = f"{asked['way']}{key}"
        yield f"| {asked['checkpoint']} | {cache} | {way} | {loss} | {share} | {ends} | {run['seconds']:.0f} |"


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
    parser.add_argument("--context", type=int, default=512, help="tokens of a block")
    parser.add_argument("--steps", type=int, default=STEPS, help="of distillation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/latent.json"), help="keep results here")
    parser.add_argument("--show", action="store_true", help="only show what there is")
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
