"""What aligned conversion and refinement cost: the arithmetic for a shape, and one layer of it measured here.

    python benchmarks/cost.py                       # Llama-2-7B's shape, 32 -> 8 KV heads
    python benchmarks/cost.py --groups 1 --tokens 2048

The arithmetic is in multiply-adds times two, for all layers. The measurement takes random weights of one layer,
and repeats every step `--repeat` times; the median and the range are printed. Steps on text are measured on
`--tokens` tokens.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mha2gqa.calibration.activations import Activations
from mha2gqa.calibration.distil import DistilOptions, distil
from mha2gqa.calibration.merge import Merge
from mha2gqa.calibration.prior import Prior
from mha2gqa.calibration.refit import refit
from mha2gqa.calibration.replay import Replay
from mha2gqa.calibration.statistics import gather_statistics
from mha2gqa.calibration.student import build_student, install, own_tensors
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.families.blueprint import blueprint
from mha2gqa.families.counts import find_counts, rewrite
from mha2gqa.families.modules import attention_layers


def main() -> None:
    """Print the arithmetic and the measurement."""
    options = _options()
    torch.set_num_threads(options.threads)
    for line in arithmetic(options):
        print(line)
    print(f"\none layer, {torch.get_num_threads()} threads, median (range) of {options.repeat}, in seconds")
    for name, step in steps(options).items():
        times = [_timed(step) for _ in range(options.repeat)]
        print(f"{name:44s} {statistics.median(times):8.2f} ({min(times):.2f}-{max(times):.2f})")


def arithmetic(options: argparse.Namespace) -> list[str]:
    """Return the operations of each step, for all layers."""
    layers, width, heads, groups = options.layers, options.width, options.heads, options.groups
    head, shared, tokens = width // heads, heads // groups, options.calibration
    stack = shared * head
    forward = 2 * tokens * layers * (4 * width**2 + 3 * width * options.mlp)
    attention = 2 * tokens * (4 * width**2) + 2 * tokens * 2 * options.context * width
    rows = {
        "plain forward over the calibration text": forward,
        "statistics (x xᵀ of every layer)": 2 * tokens * layers * width**2,
        "moments: rows of q, k and v, and outputs": layers * 4 * 2 * width**3,
        "values: Gram matrices and eigenvectors": layers * groups * (2 * stack**2 * width + 9 * stack**3),
        "keys: Gram matrices of planes": layers * 8 * groups * (head // 2) * shared**2 * width,
        "outputs and queries take up the change": layers * 2 * 2 * width**2 * head,
        "grouping: eigenvalues of every pair": layers * heads**2 / 2 * 4 / 3 * (2 * head) ** 3,
        "refit: z zᵀ, y zᵀ and a solution": layers * (4 * tokens * width**2 + 2 / 3 * width**3),
        "distil (300 steps of 4096 tokens)": layers * 3 * attention / tokens * 4096 * 300,
        "refinement's own passes (teacher, student twice)": 3 * forward,
    }
    lines = [f"{layers} layers, width {width}, {heads} -> {groups} heads of {head}, {tokens:,} tokens of text"]
    return lines + [f"{name:52s} {number / 1e12:12.2f} TFLOP" for name, number in rows.items()]


def steps(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return the steps to measure, on one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.width,
        intermediate_size=options.mlp,
        num_hidden_layers=1,
        vocab_size=32000,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        architectures=["LlamaForCausalLM"],
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)
    content = config.to_dict()
    source = blueprint(content)
    targets = [(count, options.groups) for count in find_counts(content, source)]
    (layer,) = attention_layers(content, source, targets)
    weights = {name: tensor.bfloat16() for name, tensor in own_tensors(model, layer).items()}
    found = {
        "mean": lambda: merge("mean", "contiguous", layer, weights),
        "aligned, inputs taken as uncorrelated": lambda: merge("aligned", "contiguous", layer, weights),
        "aligned, with the prior of the weights": lambda: with_prior(model, layer, weights),
        "aligned, similar": lambda: merge("aligned", "similar", layer, weights),
    }
    ids = torch.randint(32000, (1, options.tokens))
    student = build_student(model, rewrite(content, targets), [layer])
    install(student.get_submodule(layer.module), merge("mean", "contiguous", layer, own_tensors(model, layer)))
    memory = Activations(8 << 30, Path(tempfile.gettempdir()))
    pairs = list(
        zip(
            Replay(student, [ids], memory).calls(layer.module),
            Replay(model, [ids], memory).outputs(layer.module),
            strict=True,
        )
    )
    module, device = student.get_submodule(layer.module), torch.device("cpu")
    once = DistilOptions(steps=1)
    return found | {
        f"plain forward ({options.tokens} tokens)": lambda: model.model(ids, use_cache=False),
        "the same with statistics": lambda: gather_statistics(model.model, [_inner(layer)], [ids], lambda *_: None),
        "refit": lambda: refit(module, "o_proj", pairs, device),
        "distil, one step": lambda: distil(module, layer.changed, pairs, once, device),
    }


def merge(
    method: str, grouping: str, layer: AttentionLayer, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Merge a layer without statistics."""
    return Merge(method=method, grouping=grouping, seed=0)(layer, tensors, None).tensors


def with_prior(model: LlamaForCausalLM, layer: AttentionLayer, tensors: dict[str, torch.Tensor]) -> None:
    """Merge a layer as `--method aligned` does without text."""
    prior = Prior(model.model.embed_tokens.weight, len(tensors[layer.output]), torch.device("cpu"))
    Merge(method="aligned", grouping="contiguous", seed=0)(layer, tensors, prior.statistics(None, has_bias=False))
    prior.add(tensors[layer.output])


def _inner(layer: AttentionLayer) -> AttentionLayer:
    from dataclasses import replace

    return replace(layer, module=layer.module.removeprefix("model."))


def _timed(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "layers": 32,
        "width": 4096,
        "mlp": 11008,
        "heads": 32,
        "groups": 8,
        "context": 2048,
        "calibration": 262_144,
        "tokens": 1024,
        "repeat": 3,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
