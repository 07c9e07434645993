"""What aligned conversion and refinement cost: the arithmetic for a shape, and one layer of it measured here.

    python benchmarks/cost.py                       # Llama-2-7B's shape, 32 -> 8 KV heads
    python benchmarks/cost.py --groups 1

The arithmetic is in multiply-adds times two, for all layers; the projection for a GPU divides it by rates that
it names. The measurement takes random weights of one layer; the steps of a block take turns, `--repeat` times, and
the median and the range of their processor seconds are printed, so that what others do on the machine counts
less. Steps on text are measured on `--tokens` tokens in blocks of `--context`; what takes minutes, the refit of values
and outputs and the grouping, once. On an accelerator (`--device`) the model is in bf16, times are those of a clock
that is read when all work is done, and the peak of the allocator stands beside them; activations wait in the host's
memory, as in a conversion.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.model.architecture import Architecture
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent, distil
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.prior import Prior
from mha2gqa.refine.refine import keep_aside
from mha2gqa.refine.refit import refit
from mha2gqa.refine.refit_values import refit_values, rows_of_mixtures
from mha2gqa.refine.replay import Replay
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.refine.student import build_student, install, own_tensors
from mha2gqa.verbs.convert.layerwise import blocks_of_a_step
from mha2gqa.verbs.convert.options import STEPS

SPEED_16, SPEED_32, SPEED_64, MOVED = 400e12, 40e12, 20e12, 20e9
"""What an H200 is taken to do: operations a second in bf16, fp32 and fp64 (40, 60 and 30 % of its peaks), and bytes a
second between its memory and the host's."""
DECOMPOSITION, LAUNCHES = 0.05, 1e-3
"""Seconds it is taken to need for the eigenvectors of one Gram matrix of values, and to start one round of the fit."""
FIT_ROUNDS, VALUE_ROUNDS, REFIT_ROUNDS, REFIT_STEPS, RIDGES = 20, 8, 3, 2, 5
"""Rounds of the fit over distances, of the search for values, and of the refit of values and outputs, about what small
models took; conjugate gradients in each of the latter; ridges that are tried."""
MIXED = 8192
"""Tokens over which values of a large model are refitted, and over which that is measured, at most."""


def main() -> None:
    """Print the arithmetic, the projection and the measurement."""
    options = read_options()
    torch.set_num_threads(options.threads)
    print(f"{options.layers} layers, width {options.width}, {options.heads} -> {options.groups} heads", end="")
    print(f" of {options.width // options.heads}, {options.calibration:,} tokens of text")
    for name, number in arithmetic(options).items():
        print(f"{name:52s} {number / 1e12:12.2f} TFLOP")
    print(f"\nprojection for an H200, aligned and distil: {projection(options):.0f} s")
    where = f"{torch.get_num_threads()} threads, processor" if options.device == "cpu" else options.device
    print(f"\none layer, {where} seconds, median (range) of {options.repeat}")
    for name, times, peak in measured(options):
        more = f", {peak / 1e9:.1f} GB at most" if peak else ""
        print(f"{name:44s} {statistics.median(times):8.2f} ({min(times):.2f}-{max(times):.2f}){more}", flush=True)


def measured(
    options: argparse.Namespace, failed: Callable[[str], None] | None = None
) -> Iterator[tuple[str, list[float], int]]:
    """Yield the name of each step, its seconds, and on an accelerator the most bytes that were allocated meanwhile.

    Args:
        options: Of the command line.
        failed: Told of the steps of a block in which something is raised, which else ends it all.
    """
    *blocks, slow = steps(options)
    turns = [(block, options.repeat + 1) for block in blocks] + [({name: step}, 1) for name, step in slow.items()]
    for block, count in turns:
        times: dict[str, list[tuple[float, int]]] = {name: [] for name in block}
        try:
            for _ in range(count):
                for name, step in block.items():
                    times[name].append(_timed(step, options.device))
        except Exception:  # of a device that nobody has tried: the other steps may run
            if failed is None:
                raise
            failed(", ".join(block))
            continue
        for name, found in times.items():
            kept = found[1:] or found  # the first time of several warms up
            yield name, [seconds for seconds, _ in kept], max(peak for _, peak in kept)


def arithmetic(options: argparse.Namespace) -> dict[str, float]:
    """Return the operations of each step, for all layers."""
    layers, width, heads, groups = options.layers, options.width, options.heads, options.groups
    head, shared, tokens = width // heads, heads // groups, options.calibration
    read = step_tokens(options)
    stack, half = shared * head, (5 / 8 if shared * head >= 512 else 1)
    mixed, few = heads * rows_of_mixtures(heads, head, shared), min(7 / 8 * tokens, MIXED) + min(1 / 8 * tokens, MIXED)
    forward = 2 * tokens * layers * (4 * width**2 + 3 * width * options.mlp)
    attention = 2 * tokens * (4 * width**2) + 2 * tokens * 2 * options.context * width
    whole = 2 / 3 * stack**3 + 4 * stack**3 + 9 * stack**3  # a root, two products, eigenvectors
    values = min(whole, VALUE_ROUNDS * 2 * 2 * stack**2 * 2 * head) if shared >= 8 else whole
    return {
        "plain forward over the calibration text": forward,
        "statistics (x xᵀ of every layer)": 5 / 8 * 2 * tokens * layers * width**2,
        "rows of q, k and v in that metric": layers * 3 * 2 * width**3,
        "rows of q, k and v in the guess of aligned alone": layers * 3 * 2 * width**2 * 256,
        "the guess itself": layers * 4 * 2 * width**2 * 128 + 4 * 2 * 8192 * width * 256,
        "Gram matrices of k, v and o": layers * groups * 3 * half * 2 * stack**2 * width,
        "values: what is kept of them": layers * groups * values,
        "keys: the fit over distances": layers * groups * FIT_ROUNDS * _fit_round(stack, head),
        "outputs and queries take up the change": layers * 2 * 2 * width**2 * head,
        "grouping: values and keys of every pair": layers
        * (heads * (heads - 1) / 2)
        * (17 * (2 * head) ** 3 + FIT_ROUNDS * _fit_round(2 * head, head)),
        "refit: attention on the rows that values are mixed of": layers * mixed / width * attention * few / tokens,
        "refit: s sᵀ and y sᵀ": layers * few * (5 / 4 * mixed**2 + 2 * width * mixed),
        "refit: values and outputs in turn": layers * REFIT_ROUNDS * _refit_round(heads, head, mixed),
        "refit: what outputs read, over the other tokens": layers * (tokens - few) / tokens * attention,
        "refit: z zᵀ and y zᵀ": layers * (tokens - few) * (5 / 4 + 2) * width**2,
        "refit: outputs held more or less firmly": layers * 2 * RIDGES * (2 / 3 + 2) * width**3,
        f"distil ({STEPS} steps of {read} tokens)": layers * 3 * attention / tokens * read * STEPS,
        "refinement's own passes (teacher and student)": 2 * forward,
    }


def step_tokens(options: argparse.Namespace) -> int:
    """Return how many tokens a step of a distillation reads."""
    tokens: int = options.context * blocks_of_a_step(options.calibration // options.context, options.context)
    return tokens


def _fit_round(stack: int, head: int) -> float:
    """Return the operations of one round of `fit_over_distances`: products with the Gram matrix, and small ones."""
    return 2 * head * stack**2 + 12 * head**2 * stack + 2 * 2 / 3 * head**3


def _refit_round(heads: int, head: int, mixed: int) -> float:
    """Return the operations of one round of `Bilinear.solve`: conjugate gradients, and an output projection."""
    width, rows = heads * head, mixed // heads
    curve = 2 * width * rows * mixed + 2 * width**2 * rows
    return (REFIT_STEPS + 1) * curve + (2 / 3 + 2 + 2) * width**3


def projection(options: argparse.Namespace) -> float:
    """Return the seconds of `--method aligned --refine distil` on an H200: arithmetic, decompositions and moves."""
    work = arithmetic(options)
    half, single, double = (
        sum(number for name, number in work.items() if name.startswith(kind))
        for kind in (
            ("distil", "refinement", "refit: attention", "refit: what"),
            ("statistics", "rows of q, k and v in that", "Gram", "refit: s", "refit: z"),
            ("keys", "refit: values", "refit: outputs"),
        )
    )
    # Of every token: inputs and outputs kept, then read to merge, to refit and to measure; four outputs of blocks.
    moved: float = options.layers * options.width * 2 * (10 * options.calibration + 2 * STEPS * step_tokens(options))
    decomposed: float = options.layers * options.groups * (DECOMPOSITION + FIT_ROUNDS * LAUNCHES)
    return half / SPEED_16 + single / SPEED_32 + double / SPEED_64 + moved / MOVED + decomposed


def steps(options: argparse.Namespace) -> list[dict[str, Callable[[], object]]]:
    """Return the steps to measure, on one layer, in blocks that are compared."""
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
    device = torch.device(options.device)
    with device:
        model = LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)
    if device.type != "cpu":
        model = model.bfloat16()
    content = config.to_dict()
    source = Architecture(content)
    moves = [(count, options.groups) for count in source.counts]
    (layer,) = source.attention_layers(moves)
    weights = {name: tensor.bfloat16() for name, tensor in own_tensors(model, layer).items()}
    prior = Prior(model.model.embed_tokens.weight, options.width, device)
    merges: dict[str, Callable[[], object]] = {
        "mean": lambda: merge("mean", "contiguous", layer, weights),
        "aligned, inputs taken as uncorrelated": lambda: merge("aligned", "contiguous", layer, weights),
        "aligned, with the guess of the weights": lambda: with_prior(prior, layer, weights),
    }
    once: dict[str, Callable[[], object]] = {
        "the guess of the embedding, once a model": lambda: Prior(
            model.model.embed_tokens.weight, options.width, device
        ),
    }
    ids = torch.randint(32000, (options.tokens // options.context, options.context))
    student = build_student(model, source.with_heads(moves).config, [layer])
    merged = LayerMerge(method="mean", grouping="contiguous", seed=0)(layer, own_tensors(model, layer), None)
    install(student.get_submodule(layer.module), merged.tensors)
    memory = Activations(8 << 30, Path(tempfile.gettempdir()))
    examples = list(
        zip(
            Replay(student, ids.split(1), memory).calls(layer.module),
            Replay(model, ids.split(1), memory).outputs(layer.module),
            strict=True,
        )
    )
    aside, training = keep_aside(examples)
    module, step = student.get_submodule(layer.module), Descent(steps=1)
    trained = copy.deepcopy(module).float()  # as a refinement trains it, whatever the model is in
    passes: dict[str, Callable[[], object]] = {
        f"plain forward ({options.tokens:,} tokens)": lambda: _forward(model.model, ids.to(device)),
        "the same with statistics": lambda: gather_statistics(model.model, [_inner(layer)], [ids], lambda *_: None),
    }
    once |= {
        "refit of the outputs alone": lambda: refit(module, "o_proj", training, aside, device),
        f"distil, one step of {options.context:,} tokens": lambda: distil(
            trained, layer.changed, training, step, device
        ),
    }
    slow: dict[str, Callable[[], object]] = {
        "refit of values and outputs": lambda: refit_values(module, "o_proj", training, aside, device, merged),
        "aligned, similar": lambda: merge("aligned", "similar", layer, weights),
    }
    return [merges, passes, once, slow]


def merge(
    method: str, grouping: str, layer: AttentionLayer, tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Merge a layer without statistics."""
    return LayerMerge(method=method, grouping=grouping, seed=0)(layer, tensors, None).tensors


def with_prior(prior: Prior, layer: AttentionLayer, tensors: dict[str, torch.Tensor]) -> None:
    """Merge a layer as `--method aligned` does without text."""
    guess = prior.statistics(None, has_bias=False)
    LayerMerge(method="aligned", grouping="contiguous", seed=0)(layer, tensors, guess)
    prior.add(tensors[layer.output])


def _inner(layer: AttentionLayer) -> AttentionLayer:
    return replace(layer, module=layer.module.removeprefix("model."))


@torch.no_grad()
def _forward(model: torch.nn.Module, ids: torch.Tensor) -> None:
    model(ids, use_cache=False)


def _timed(step: Callable[[], object], device: str) -> tuple[float, int]:
    """Return the seconds of a step, and the most bytes that an accelerator held meanwhile."""
    if device == "cpu":
        started = time.process_time()
        step()
        return time.process_time() - started, 0
    torch.accelerator.memory.reset_peak_memory_stats()
    torch.accelerator.synchronize()
    started = time.perf_counter()
    step()
    torch.accelerator.synchronize()
    return time.perf_counter() - started, torch.accelerator.memory.max_memory_allocated()


def read_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "layers": 32,
        "width": 4096,
        "mlp": 11008,
        "heads": 32,
        "groups": 8,
        "context": 2048,
        "calibration": 262_144,
        "tokens": 4096,
        "repeat": 3,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
