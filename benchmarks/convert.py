"""What `mha2gqa convert` costs beside `cp -r` and beside the usual script: `python benchmarks/convert.py --help`.

    write_checkpoint          a random bf16 Llama of a known size, written in bounded memory
    command, measure          one contender as a process of its own and a final sync: wall, CPU and peak memory
    check_output              a result is held against float64 means, so that no no-op can be timed
    run_rounds, format_table  the turns, and the Markdown that goes into docs/

Contenders take turns, one place later in each round; ratios are taken inside a round. No path is printed. Linux only.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from contextlib import nullcontext
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
import typer
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open

INDEX = "model.safetensors.index.json"
CHUNK, RANDOM = 1 << 25, np.random.default_rng()
ROWS = {
    "cp": "`cp -r`",
    "convert": "`mha2gqa convert`",
    "start-up": "its start-up alone (`--dry-run`)",
    "beyond": "`mha2gqa convert` without its start-up",
    "script": "`from_pretrained`, pool, `save_pretrained`",
}

# A process's ru_maxrss starts at the resident size of whoever forked it, so a bare interpreter (10 MB) starts it.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ), 0)
os.sync()
wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
print("\\n" + json.dumps([os.waitstatus_to_exitcode(status), wall, cpu, usage.ru_maxrss * 1024 / 1e6]))
"""

# The leanest form of the usual script: the new model is built without memory of its own and takes the tensors over.
SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
config, state, groups = model.config, model.state_dict(), int(sys.argv[3])
for name, weight in state.items():
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        state[name] = weight.unflatten(0, (groups, -1, config.head_dim)).float().mean(1).flatten(0, 1).bfloat16()
config.num_key_value_heads = groups
with torch.device("meta"):
    pooled = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
pooled.load_state_dict(state, assign=True)
pooled.save_pretrained(sys.argv[2])
"""


# Layers, width, heads, MLP width and size of a weight file; 32,000 tokens and untied embeddings are LlamaConfig's own.
SHAPES = {"tiny": (8, 512, 16, 1408, "50MB"), "1b": (16, 2048, 16, 5632, "1GB"), "7b": (32, 4096, 32, 11008, "5GB")}
Taken = dict[str, dict[int, list[float]]]  # contender, round: wall s, CPU s (user and system), peak resident MB (10^6)


def empty_llama(shape: str) -> Any:
    """The model without memory, in bf16: transformers' own config, tensor names and order."""
    layers, width, heads, mlp, _ = SHAPES[shape]
    sizes: Any = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": mlp}
    sizes |= {"num_attention_heads": heads, "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).bfloat16()


def write_checkpoint(folder: Path, llama: Any, shard_size: str) -> None:
    """Writes the checkpoint beside `folder` and renames it, so that `folder` is always whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    llama.config.save_pretrained(part)
    state = llama.state_dict()
    split = split_torch_state_dict_into_shards(state, max_shard_size=shard_size)
    for file, names in split.filename_to_tensors.items():  # inside a file, the safetensors library orders by name
        _write_shard(part / file, {name: state[name].shape for name in sorted(names)})
    (part / INDEX).write_text(json.dumps({"metadata": split.metadata, "weight_map": split.tensor_to_filename}))
    part.rename(folder)


def _write_shard(path: Path, shard: dict[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in shard.items():
        start, end = end, end + 2 * prod(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done in range(0, end, CHUNK):
            words = RANDOM.integers(0, 1 << 16, min(CHUNK, end - done) // 2, dtype=np.uint16)
            file.write(((words & 0x81FF) | 0x3A00).tobytes())  # any sign and mantissa, 2^-11 <= |w| < 2^-7
    _set_cache(path, cold=True)


def _set_cache(path: Path, *, cold: bool) -> None:
    """Takes one file out of the page cache, or reads it in; everything else that is cached stays."""
    with path.open("rb", buffering=0) as file:
        if cold:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while not cold and file.read(CHUNK):
            continue


def command(contender: str, source: Path, output: Path, groups: int) -> list[str]:
    """The command of one contender."""
    if contender == "cp":
        return ["cp", "-r", str(source), str(output)]
    if contender == "script":
        return [sys.executable, "-c", SCRIPT, str(source), str(output), str(groups)]
    convert = [sys.executable, "-m", "mha2gqa", "convert", str(source), "--groups", str(groups), "-o", str(output)]
    return [*convert, "--dry-run"] if contender == "start-up" else convert


def measure(contender: str, number: int, arguments: list[str]) -> list[float]:
    """Runs a command from nothing to synced and returns what it took; a command that fails ends the benchmark."""
    launcher = [sys.executable, "-ISc", LAUNCHER, *arguments]
    done = subprocess.run(launcher, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    code, *taken = [done.returncode] if done.returncode else json.loads(done.stdout.splitlines()[-1])
    if code:
        sys.exit(f"error: {contender} ended with {code}: {(done.stderr or done.stdout).strip()[-2000:]}")
    print("round {}: {} {:.1f} s, {:.1f} s CPU, {:.0f} MB".format(number, contender, *taken), file=sys.stderr)
    return taken


def check_output(source: Path, output: Path, groups: int) -> None:
    """Ends the benchmark unless, in one random layer, K and V are the pooled heads and Q is the source's."""
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, output))
    layer, right = RANDOM.integers(old["num_hidden_layers"]), new["num_key_value_heads"] == groups
    for kind, kept in (("q", old["num_attention_heads"]), ("k", groups), ("v", groups)):
        name, pair = f"model.layers.{layer}.self_attn.{kind}_proj.weight", []
        for folder in (source, output):
            files = json.loads((folder / INDEX).read_text())["weight_map"] if (folder / INDEX).exists() else {}
            with safe_open(folder / files.get(name, "model.safetensors"), "pt") as file:
                pair.append(file.get_tensor(name))
        # The weights span four exponents and H/G is a power of two: an fp32 sum is exact, and so is this comparison.
        means = pair[0].double().unflatten(0, (kept, -1, old["head_dim"])).mean(1).flatten(0, 1)
        right = right and means.bfloat16().equal(pair[1])
    if not right:
        sys.exit(f"error: layer {layer} of the result is not what {groups} pooled KV heads should be")


def format_table(taken: Taken) -> str:
    """Markdown: medians with ranges; a ratio is the wall time over that of `cp -r` in the same round."""
    lines = ["| with a final sync | wall, s | ratio to `cp -r` | CPU, s | peak MB |", "|---|---|---|---|---|"]
    if "convert" in taken:
        taken = {**taken, "beyond": {i: [run[0] - taken["start-up"][i][0]] for i, run in taken["convert"].items()}}
    for name in (name for name in ROWS if name in taken):
        wall, cpu, peak = ([run[i] for run in taken[name].values() if i < len(run)] for i in range(3))
        ratios = [run[0] / taken["cp"][i][0] for i, run in taken[name].items()] if "cp" in taken else []
        cells = [ROWS[name], _spread(wall), _spread(ratios, 2), _spread(cpu), _spread(peak, 0)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int = 1) -> str:
    three = (np.median(values), min(values), max(values)) if values else ()
    return "{} ({}-{})".format(*(f"{value:.{digits}f}" for value in three)) if three else ""


def _memory(key: str) -> int:
    return int(Path("/proc/meminfo").read_text().split(f"{key}:")[1].split()[0]) * 1024


def describe_machine(work: Path) -> str:
    """One line: cores, memory, file system, kernel, versions and load, without a path."""
    df = subprocess.run(["df", "--output=fstype", str(work)], capture_output=True, text=True, check=True)  # noqa: S607
    hardware = f"{os.cpu_count()} cores ({platform.machine()}), {_memory('MemTotal') / 1e9:.0f} GB of memory"
    python = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    system = f"{df.stdout.split()[-1]}, Linux {platform.release()}, {python}"
    return f"{hardware}, {system}; load {os.getloadavg()[0]:.1f} before the first run"


def refuse_shortage(source: Path, size: int, names: list[str]) -> None:
    """Ends the benchmark when the disk cannot hold source and one output, or memory the usual script's model."""
    need, free = size * (1.05 if source.exists() else 2.05), shutil.disk_usage(source.parent).free
    print(f"needs {need / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free", file=sys.stderr)
    if free < need:
        sys.exit("error: not enough disk; name another directory with --work")
    if "script" in names and _memory("MemAvailable") < 1.1 * size:
        sys.exit(f"error: the usual script needs {1.1 * size / 1e9:.1f} GB of memory; use --contender cp,convert")


def run_rounds(source: Path, groups: int, names: list[str], rounds: int, cold: bool) -> Taken:
    """Verifies `convert` once, then measures every contender in every round; outputs go between the runs."""
    turns = [(0, "convert")] if "convert" in names else []  # verified and dropped; also leaves Python's files cached
    turns += [(i + 1, names[(i + k) % len(names)]) for i in range(rounds) for k in range(len(names))]
    taken: Taken = {name: {} for name in names}
    for number, name in turns:
        with TemporaryDirectory(prefix="run-", dir=source.parent) as folder:
            output = Path(folder) / "output"
            for path in source.iterdir():
                _set_cache(path, cold=cold)
            os.sync()
            run = measure(name, number, command(name, source, output, groups))
            taken[name] |= {number: run} if number else {}
            if name in ("convert", "script"):
                check_output(source, output, groups)
    return taken


def main(
    shape: Annotated[Literal["tiny", "1b", "7b"], typer.Option(help="Size: 0.1, 1.9 or 13.5 GB.")] = "1b",
    groups: Annotated[int, typer.Option(min=1, help="KV heads of the result.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender runs.")] = 3,
    work: Annotated[Path | None, typer.Option(help="Keeps the checkpoint; else a temporary sibling of here.")] = None,
    cold: Annotated[bool, typer.Option("--cold/--warm", help="Source out of, or in, the page cache.")] = True,
    contender: Annotated[str, typer.Option(help="Which of them, comma-separated.")] = "cp,convert,script",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every run here.")] = None,
) -> None:
    """Measure `mha2gqa convert`, `cp -r` and the usual script on a random-weight Llama."""
    names = list(dict.fromkeys(contender.replace("convert", "start-up,convert").split(",")))
    llama, heads = empty_llama(shape), SHAPES[shape][2]
    size = sum(weight.nbytes for weight in llama.parameters())
    if not set(names) <= ROWS.keys() - {"beyond"} or heads % groups:
        sys.exit(f"error: contenders are cp, convert, script; groups divide {heads}; got {contender}, {groups}")
    with nullcontext(work) if work else TemporaryDirectory(prefix="bench-", dir=Path.cwd().parent) as kept:
        source = Path(kept).resolve() / f"llama-{shape}"
        source.parent.mkdir(parents=True, exist_ok=True)
        refuse_shortage(source, size, names)
        machine = describe_machine(source.parent)
        if not source.exists():
            write_checkpoint(source, llama, SHAPES[shape][-1])
        taken = run_rounds(source, groups, names, rounds, cold)
    what = f"{size / 1e9:.1f} GB bf16, {heads} to {groups} KV heads, page cache {'cold' if cold else 'warm'}"
    title = f"Llama of {shape} shape, {what}, {rounds} rounds"
    print(f"{title}.\n{machine}.\n\n{format_table(taken)}")
    if json_file:
        json_file.write_text(json.dumps({"title": title, "machine": machine, "wall_cpu_peak": taken}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
