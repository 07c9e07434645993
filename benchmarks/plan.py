"""Time and memory of planning models that no disk here holds, up to 98,421 tensors in 118 files.

    python benchmarks/plan.py              # writes sparse files into a temporary directory, and plans their conversion
    python benchmarks/plan.py --tree DIR   # by another version of the code, in DIR

A plan reads headers and no weights, so that files whose data was never written are as good as real ones. Prints the
seconds, those of the processor and the peak memory of whole commands, with start-up, which the first is alone.
"""

import argparse
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEAD = 128


@dataclass(frozen=True)
class Shape:
    """A model."""

    layers: int
    experts: int
    """0 of a Llama; else those of a Qwen3 mixture."""
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    shards: int


SHAPES = {
    "tiny": Shape(1, 1, 4096, 1536, 64, 4, 151_936, 1),
    "Llama-2-70B": Shape(80, 0, 8192, 28_672, 64, 8, 32_000, 15),
    "Qwen3-235B": Shape(94, 128, 4096, 1536, 64, 4, 151_936, 118),
    "Qwen3-235B with 346 experts": Shape(94, 346, 4096, 1536, 64, 4, 151_936, 118),
}


def config(shape: Shape) -> dict[str, object]:
    """Return the config.json of a model."""
    content: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    if not shape.experts:
        return content
    return content | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": shape.inner,
        "num_experts": shape.experts,
        "num_experts_per_tok": min(8, shape.experts),
    }


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the files' tensors."""
    width = shape.width
    yield "model.embed_tokens.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            yield f"{path}.self_attn.{name}_proj.weight", (heads * HEAD, width)
        yield f"{path}.self_attn.o_proj.weight", (width, shape.heads * HEAD)
        yield from ((f"{path}.{name}_layernorm.weight", (width,)) for name in ("input", "post_attention"))
        if shape.experts:
            yield from ((f"{path}.self_attn.{name}_norm.weight", (HEAD,)) for name in ("q", "k"))
            yield f"{path}.mlp.gate.weight", (shape.experts, width)
        for mlp in [f"experts.{expert}." for expert in range(shape.experts)] or [""]:
            yield from ((f"{path}.mlp.{mlp}{name}_proj.weight", (shape.inner, width)) for name in ("gate", "up"))
            yield f"{path}.mlp.{mlp}down_proj.weight", (width, shape.inner)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (shape.vocabulary, width)


def write_sparse(directory: Path, shape: Shape) -> int:
    """Write a checkpoint whose data takes no room on disk; return the number of its tensors."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config(shape)))
    found, shards = list(tensors(shape)), shape.shards
    per_file, weight_map = -(-len(found) // shards), {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {}, 0
        for tensor, size in found[number * per_file : (number + 1) * per_file]:
            bytes_ = 2 * math.prod(size)
            header[tensor] = {"dtype": "BF16", "shape": size, "data_offsets": (offset, offset + bytes_)}
            weight_map[tensor], offset = name, offset + bytes_
        text = json.dumps(header).encode()
        (directory / name).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(directory / name, 8 + len(text) + offset)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return len(found)


def measure(directory: Path, tree: Path) -> tuple[float, float, int]:
    """Return the seconds of planning a conversion, those of the processor, and the most bytes that were in memory."""
    command = [sys.executable, "-m", "mha2gqa", "convert", str(directory), "-g", "1", "--dry-run", "--json"]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, cwd=directory.parent, env=os.environ | {"PYTHONPATH": str(tree)}
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, busy, 1024 * after.ru_maxrss  # the largest so far: models are in the order of their size


def main() -> None:
    """Plan all, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="The code to run.")
    tree = parser.parse_args().tree.resolve()
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            directory = Path(folder) / name
            count = write_sparse(directory, shape)
            seconds, busy, peak = measure(directory, tree)
            took = f"{seconds:.1f} s ({busy:.1f} of a processor)"
            print(f"{name}: {count:,} tensors, {took}, {peak / 2**20:.0f} MiB at most")
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
