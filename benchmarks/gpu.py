"""Everything that an accelerator is for, in one command of at most 8 minutes: `python benchmarks/gpu.py --help`.

    rates        what the device does: products of matrices in bf16, fp32 and fp64, its memory, and the way to the host
    layer        one layer of Llama-2-7B's shape merged, with statistics, refitted and distilled (`cost.py`)
    agreement    the reference, aligned and distilled here and on the CPU: errors of layers, and the outputs' loss
    uptrain ...  steps of plain Trainer and of ours in bf16, 0.85 billion parameters, share of the peak (`uptrain.py`)
    bench ...    decoding at Llama-2-7B's shape, original beside converted, and the largest batch that runs (`bench`)

Each part is a process of its own with a budget of seconds, the most wanted ones first; a part that has none left is not
begun. What it finds is in the JSON file as soon as it is there, also when it is killed or fails, with the reason, and
the rest goes on. Called again it does the parts that have not been done. `--miniature` runs all of it in small.

This file measures nothing itself but `rates`; it adds no way to run anything.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import cost
import torch
import typer
import uptrain

from mha2gqa import BenchOptions, ConvertOptions, VerifyOptions, bench, convert, verify
from mha2gqa.files.source import reference_directory
from mha2gqa.reference.corpus import calibration_files
from mha2gqa.verbs.bench.run import device_name, machine, versions
from mha2gqa.verbs.bench.transformers_engine import now

Found = dict[str, Any]
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "B200": 2250e12}
"""FLOP/s in bf16 without sparsity by the makers' data sheets, by what a device's name contains."""
TINY: Found = {
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Setup:
    """Where and how large everything is."""

    device: str
    folder: Path
    """What one part leaves for the next."""
    miniature: bool = False


@dataclass(frozen=True)
class Part:
    """What a process does; its results come one by one."""

    budget: int
    """Seconds."""
    run: Callable[[Setup], Iterator[tuple[str, Any]]]


def rates(setup: Setup) -> Iterator[tuple[str, Any]]:
    """Yield operations and bytes a second."""
    device, size = torch.device(setup.device), 256 if setup.miniature else 8192
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        one = torch.randn(size, size, device=device).to(dtype)
        yield (
            f"{dtype}".removeprefix("torch.") + ", FLOP/s",
            2 * size**3 / _seconds(partial(torch.matmul, one, one), device),
        )
    large = torch.zeros(size**2 * 8, device=device)  # 2 GB, beyond every cache
    other = torch.empty_like(large)
    yield "memory, B/s", 2 * large.nbytes / _seconds(lambda: other.copy_(large), device)
    host = torch.zeros(size**2)
    yield "from the host, B/s", host.nbytes / _seconds(lambda: host.to(device, copy=True), device)


def _seconds(step: Callable[[], object], device: torch.device, turns: int = 5) -> float:
    """Return the median seconds of a step behind two that warm up."""
    times = []
    for _ in range(turns + 2):
        started = now(device)
        step()
        times.append(now(device) - started)
    return statistics.median(times[2:])


def layer(setup: Setup) -> Iterator[tuple[str, Any]]:
    """Yield seconds and peak memory of what a conversion does with a layer."""
    small = "--width 64 --mlp 96 --heads 4 --groups 2 --context 32 --tokens 128 --repeat 1"
    options = cost.read_options(["--device", setup.device, *(small.split() if setup.miniature else [])])
    for name, times, peak in cost.measured(options):
        yield name, {"seconds": statistics.median(times), "low": min(times), "high": max(times), "peak": peak}


def agreement(setup: Setup) -> Iterator[tuple[str, Any]]:
    """Yield what a conversion leaves, here and on the CPU, both in fp32."""
    options = ConvertOptions(
        groups=4 if setup.miniature else 2,
        method="aligned",
        refine="distil",
        data=tuple(_text(setup)),
        tokens=1024 if setup.miniature else 32_768,
        context=64 if setup.miniature else 256,
        steps=2 if setup.miniature else 60,
        dtype="float32",
    )
    for device in dict.fromkeys((setup.device, "cpu")):
        output = setup.folder / f"aligned-{device}"
        made = convert(replace(options, device=device, output=output, force=True))
        held_out = 512 if setup.miniature else 16_384
        checked = verify(VerifyOptions(converted=output, levels=("outputs",), tokens=held_out, device="cpu"))
        if checked.outputs is None or checked.outputs.loss is None:
            raise RuntimeError("verify has measured no loss")
        yield device, {"layers": made.layer_errors, "loss": checked.outputs.loss.difference, "seconds": made.seconds}


def _text(setup: Setup) -> list[str]:
    return [str(path) for path in calibration_files()[: 2 if setup.miniature else None]]


def _subject(setup: Setup) -> Path:
    """Return a conversion of a model that the reference's tokenizer serves, made by the first that needs it."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder, output = setup.folder, setup.folder / "converted"
    if output.exists():
        return output
    large: Found = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }
    large |= {"num_hidden_layers": 14, "vocab_size": 32_000, "max_position_embeddings": 2048}
    sizes = TINY | {"vocab_size": 4096, "max_position_embeddings": 32} if setup.miniature else large
    with torch.device(setup.device):
        model = LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0)).bfloat16()
    model.save_pretrained(folder / "original")
    AutoTokenizer.from_pretrained(reference_directory()).save_pretrained(folder / "original")
    convert(ConvertOptions(model=str(folder / "original"), groups=2, output=output))
    return output


def train(setup: Setup, way: str) -> Iterator[tuple[str, Any]]:
    """Yield what steps of a way to train take."""
    directory, cpu = _subject(setup), setup.device == "cpu"
    job = {"way": way, "converted": str(directory), "threads": None, "cpu": cpu, "data": _text(setup)}
    sizes = {"steps": 5, "batch": 1} if setup.miniature else {"steps": 12, "batch": 4}
    yield from uptrain.measure(json.dumps(job | sizes)).items()


def decode(setup: Setup, **options: Any) -> Iterator[tuple[str, Any]]:
    """Yield the report of `bench`."""
    needed = "flash_attn" if options["attention"] == "flash_attention_2" else "torch"
    if find_spec(needed) is None:
        yield "left out", f"{needed} is not installed"
        return
    if setup.miniature:
        shape = setup.folder / "shape.json"
        content = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **TINY}
        shape.write_text(json.dumps(content))
        options |= {"shape": str(shape), "batch": (2,), "context": (32,), "turns": 1, "tokens": 2, "memory": "1GB"}
        options |= {"latent": 24, "rope_width": 8} if "latent" in options else {"groups": min(2, options["groups"])}
    defaults: Found = {"shape": "llama-2-7b", "dtype": "bfloat16", "turns": 3, "tokens": 16, "prefill_tokens": 4096}
    yield "report", bench(BenchOptions(**defaults | options, device=setup.device)).to_json()


def _decode(budget: int, attention: str, cache: str, batch: tuple[int, ...], **target: int) -> Part:
    options: Found = {"attention": attention, "cache": (cache,), "batch": batch, "context": (4096,), **target}
    return Part(budget, partial(decode, **options))


PARTS = {
    "rates": Part(40, rates),
    "bench, 8 KV heads": _decode(110, "grouped", "static", (16,), groups=8),
    "layer": Part(100, layer),
    **{f"uptrain, {way}": Part(70, partial(train, way=way)) for way in ("plain Trainer", "lm, all", "distil, all")},
    "bench, latent": _decode(110, "absorbed", "static", (16,), latent=448, rope_width=64),
    "bench, 1 KV head": _decode(110, "grouped", "static", (16,), groups=1),
    "agreement": Part(90, agreement),
    "uptrain, distil, attention": Part(70, partial(train, way="distil, attention")),
    "bench, 8 KV heads, sdpa not compiled": _decode(60, "sdpa", "dynamic", (1, 16), groups=8),
    "bench, 8 KV heads, flash": _decode(60, "flash_attention_2", "dynamic", (1, 16), groups=8),
}
"""By name, the most wanted first; a cache that is static is compiled on an accelerator."""


def do(name: str, setup: Setup) -> None:
    """Do a part in this process; every result is in its file as soon as it is there, and the traceback of a failure."""
    found: Found = {}
    try:
        for key, value in PARTS[name].run(setup):
            _keep(_file(setup, name), found := {**found, key: value})
    except (Exception, SystemExit):  # whatever it is: the other parts go on, and somebody reads this
        _keep(_file(setup, name), {**found, "failed": traceback.format_exc()})


def in_a_process(name: str, setup: Setup, seconds: float) -> None:
    """Do a part in a process that is killed when its time is over, or when it takes another down with it."""
    words = [name, setup.device, str(setup.folder), *(["--miniature"] if setup.miniature else [])]
    try:
        ended = subprocess.run([sys.executable, __file__, "--part", *words], timeout=seconds)
        reason = f"its process ended with {ended.returncode}" if ended.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"more than {seconds:.0f} s"
    if reason:
        _keep(_file(setup, name), {**_kept(_file(setup, name)), "failed": reason})


def _file(setup: Setup, name: str) -> Path:
    return setup.folder / f"{name}.json"


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    path.with_suffix(".new").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".new").replace(path)


def _kept(path: Path) -> Found:
    found: Found = json.loads(path.read_text()) if path.exists() else {}
    return found


def run_all(setup: Setup, results: Path, minutes: float, launch: Callable[[str, Setup, float], None]) -> Found:
    """Do the parts that have not been done, as far as time allows, and return all that is known."""
    known = _kept(results) or {"device": setup.device, "parts": {}}
    ends = time.monotonic() + 60 * minutes
    for name, part in PARTS.items():
        done = known["parts"].get(name, {})
        if done and "failed" not in done:
            continue
        left = min(part.budget, ends - time.monotonic())
        if left < 0.3 * part.budget:
            known["parts"].setdefault(name, {"failed": "no time was left"})
            continue
        started = time.monotonic()
        launch(name, setup, left)
        known["parts"][name] = _kept(_file(setup, name)) | {"took": time.monotonic() - started}
        _keep(results, known)
    return known


def format_tables(known: Found) -> str:
    """Return what was found, in Markdown."""
    parts: dict[str, Found] = known["parts"]
    lines = [f"## {known.get('name', known['device'])}", "", "| rate | |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in _numbers(parts.get("rates", {}))]
    lines += ["", "| one layer of 7B | s | peak GB |", "|---|---|---|"]
    lines += [
        f"| {name} | {one['seconds']:.4f} | {one['peak'] / 1e9:.2f} |" for name, one in _dicts(parts.get("layer", {}))
    ]
    lines += ["", "| reference, aligned and distilled on | nats lost | error of each layer |", "|---|---|---|"]
    for name, one in _dicts(parts.get("agreement", {})):
        errors = ", ".join(f"{errors['distil']:.4f}" for errors in one["layers"].values())
        lines.append(f"| {name} | {one['loss']:.4f} | {errors} |")
    runs = {
        name.removeprefix("uptrain, "): [one] for name, one in parts.items() if name[:8] == "uptrain," and "step" in one
    }
    if "plain Trainer" in runs:
        peak = next((value for name, value in PEAKS.items() if name in known.get("name", "")), None)
        lines += ["", uptrain.format_table(runs, peak)]
    rows = [(name, one["report"]) for name, one in parts.items() if "report" in one]
    lines += ["", "| decode | batch | context | ms | converted | ratio | of its limit | TB/s | largest batch |"]
    lines += ["|---" * 9 + "|", *(line for name, report in rows for line in _decoded(name, report))]
    lines += ["", *(f"{name}: {one['failed'].splitlines()[-1]}" for name, one in parts.items() if "failed" in one)]
    return "\n".join(lines)


def _numbers(found: Found) -> list[tuple[str, float]]:
    return [(name, value) for name, value in found.items() if isinstance(value, float) and name != "took"]


def _dicts(found: Found) -> list[tuple[str, Found]]:
    return [(name, value) for name, value in found.items() if isinstance(value, dict)]


def _decoded(name: str, report: Found) -> Iterator[str]:
    fits = {fit["context"]: fit["tried"] for fit in report["fits"]}
    for row in report["decode"]:
        ratio, tried = row["ratio"]["median"], fits[row["context"]]
        times = " | ".join(f"{1e3 * row[side]['median']:.2f}" for side in ("original", "converted"))
        moved = " -> ".join(f"{one / 1e12:.2f}" for one in row["bytes_per_second"])
        largest = " -> ".join(map(str, tried)) if tried else "-"
        yield (
            f"| {name.removeprefix('bench, ')} | {row['batch']} | {row['context']} | {times} | {ratio:.2f} | "
            f"{ratio / row['limit']:.0%} | {moved} | {largest} |"
        )


def main(
    results: Annotated[Path, typer.Option("--json", help="Keep results here; go on with those there.")] = Path(
        "benchmarks/results/gpu.json"
    ),
    device: Annotated[str | None, typer.Option(help="Default: the accelerator.")] = None,
    minutes: Annotated[float, typer.Option(help="All parts together, at most.")] = 8,
    miniature: Annotated[bool, typer.Option("--miniature", help="Everything in small, to see that it runs.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what there is.")] = False,
) -> None:
    """Measure on an accelerator what was never run on one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if not show and device is None and found is None and not miniature:
        raise typer.BadParameter("there is no accelerator here", param_hint="--device")
    if not show:
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(device or (found.type if found else "cpu"), Path(folder), miniature)
            known = _kept(results) or {"device": setup.device, "parts": {}}
            known |= {"name": device_name(setup.device), "machine": machine(), "versions": versions()}
            _keep(results, known)
            run_all(setup, results, minutes, in_a_process)
    print(format_tables(_kept(results)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        do(sys.argv[2], Setup(sys.argv[3], Path(sys.argv[4]), "--miniature" in sys.argv))
    else:
        typer.run(main)
