"""Time and memory of planning a model that no disk here holds: Qwen3-235B's shape, 36,945 tensors in 118 files.

    python benchmarks/plan.py              # writes sparse files into a temporary directory, and plans their conversion
    python benchmarks/plan.py --tree DIR   # by another version of the code, in DIR

A plan reads headers and no weights, so that files whose data was never written are as good as real ones. Prints the
seconds and the peak memory of the whole command, start-up included, and of one on a tiny model: start-up alone.
"""

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LAYERS, EXPERTS, WIDTH, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY = 94, 128, 4096, 1536, 64, 4, 128, 151_936
SHARDS = 118


def config(layers: int, experts: int) -> dict[str, object]:
    """Return the config.json of so many layers and experts of the model."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": WIDTH,
        "moe_intermediate_size": INNER,
        "intermediate_size": 12_288,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "num_experts": experts,
        "num_experts_per_tok": min(8, experts),
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def tensors(layers: int, experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of the files' tensors."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(layers):
        path = f"model.layers.{layer}"
        for name, rows in (("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)):
            yield f"{path}.self_attn.{name}_proj.weight", (rows, WIDTH)
        yield f"{path}.self_attn.o_proj.weight", (WIDTH, HEADS * HEAD)
        yield from ((f"{path}.self_attn.{name}_norm.weight", (HEAD,)) for name in ("q", "k"))
        yield from ((f"{path}.{name}_layernorm.weight", (WIDTH,)) for name in ("input", "post_attention"))
        yield f"{path}.mlp.gate.weight", (experts, WIDTH)
        for expert in range(experts):
            yield from ((f"{path}.mlp.experts.{expert}.{name}_proj.weight", (INNER, WIDTH)) for name in ("gate", "up"))
            yield f"{path}.mlp.experts.{expert}.down_proj.weight", (WIDTH, INNER)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def write_sparse(directory: Path, layers: int, experts: int, shards: int) -> int:
    """Write a checkpoint whose data takes no room on disk; return the number of its tensors."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config(layers, experts)))
    found = list(tensors(layers, experts))
    per_file, weight_map = -(-len(found) // shards), {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {}, 0
        for tensor, shape in found[number * per_file : (number + 1) * per_file]:
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": (offset, offset + size)}
            weight_map[tensor], offset = name, offset + size
        text = json.dumps(header).encode()
        (directory / name).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(directory / name, 8 + len(text) + offset)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return len(found)


def measure(directory: Path, tree: Path) -> tuple[float, int]:
    """Return the seconds of planning a conversion of a checkpoint, and the most bytes that it held in memory."""
    command = [sys.executable, "-m", "mha2gqa", "convert", str(directory), "-g", "1", "--dry-run", "--json"]
    started = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, cwd=directory.parent, env=os.environ | {"PYTHONPATH": str(tree)}
    )
    return time.perf_counter() - started, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def main() -> None:
    """Plan both, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="The code to run.")
    tree = parser.parse_args().tree.resolve()
    with tempfile.TemporaryDirectory() as folder:
        for name, layers, experts, shards in (("tiny", 1, 1, 1), ("Qwen3-235B", LAYERS, EXPERTS, SHARDS)):
            count = write_sparse(Path(folder) / name, layers, experts, shards)
            seconds, peak = measure(Path(folder) / name, tree)
            print(f"{name}: {count:,} tensors, {seconds:.1f} s, {peak / 2**20:.0f} MiB at most")


if __name__ == "__main__":
    main()
