"""What the outputs level of `mha2gqa verify` needs in memory beside the weights: `python benchmarks/verify.py --help`.

    write_pair      a random bf16 Llama with a large vocabulary and few layers, and its conversion
    measure         one way to compare, in a process of its own: peak memory over what both loaded models hold, and time
    format_table    the Markdown that goes into the README

Beside `verify` stands the usual way, which takes the logits of whole batches. Linux only: peaks are
read from /proc.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mha2gqa import ConvertOptions, VerifyOptions, convert
from mha2gqa.files.source import reference_directory
from mha2gqa.model.load import load_tokenizer
from mha2gqa.record.pair import find_pair
from mha2gqa.texts.find import Blocks
from mha2gqa.verbs.verify.judge import LOSSY
from mha2gqa.verbs.verify.load_level import Models
from mha2gqa.verbs.verify.outputs_level import EvaluationText, compare_outputs

MB = 1e6
WAYS = {"verify": "`mha2gqa verify`, outputs level", "whole": "logits of whole batches, `log_softmax`, `kl_div`"}


def write_pair(directory: Path, *, width: int, layers: int, vocabulary: int) -> None:
    """Write a source of 16 heads and its conversion to 4."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory / "source")
    convert(ConvertOptions(model=str(directory / "source"), groups=4, output=directory / "converted"))


def run(way: str, directory: Path, dtype: str, context: int, batches: int) -> None:
    """Compare once, in this process, and print the weights and the peak over them in bytes, and the seconds."""
    models = Models(find_pair(directory / "converted", None), dtype=dtype, device="cpu")
    original, converted = models.original, models.converted
    assert converted is not None  # noqa: S101
    parameters = [parameter for model in (original, converted) for parameter in model.parameters()]
    weights = sum(parameter.nbytes for parameter in parameters)
    for parameter in parameters:
        parameter.sum()  # weights that are mapped from a file count from here on
    vocabulary = original.config.vocab_size
    blocks_NT = torch.randint(vocabulary, (batches, context), generator=torch.Generator().manual_seed(0))
    before = _reset_peak()
    started = time.perf_counter()
    if way == "verify":
        text = EvaluationText(
            Blocks(tokens_NT=blocks_NT, description="random", sampled=False), load_tokenizer(reference_directory())
        )
        compare_outputs(models, text, LOSSY, VerifyOptions(), lambda size, total: None)
    else:
        _whole(original, converted, blocks_NT)
    print(json.dumps([weights, _peak() - before, time.perf_counter() - started]))


@torch.inference_mode()
def _whole(original: PreTrainedModel, converted: PreTrainedModel, blocks_NT: torch.Tensor) -> None:
    """Compare as the usual script does."""
    for batch in blocks_NT.split(1):
        first, second = (model(batch).logits[0, :-1].float() for model in (original, converted))
        for logits in (first, second):
            torch.nn.functional.cross_entropy(logits, batch[0, 1:])
        torch.nn.functional.kl_div(
            second.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        (first.argmax(-1) == second.argmax(-1)).sum()


def _reset_peak() -> int:
    """Make the present size the peak, and return it in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def measure(way: str, directory: Path, dtype: str, context: int, batches: int) -> list[float]:
    """Run one way in a process of its own; return bytes of weights, bytes of peak over them, seconds."""
    arguments = [str(Path(__file__)), "--child", way, str(directory), dtype, str(context), str(batches)]
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return [float(number) for number in json.loads(result.stdout.splitlines()[-1])]


def format_table(rows: list[tuple[str, str, list[float]]]) -> str:
    """Return the measurements as Markdown."""
    lines = ["| | dtype | two models' weights, MB | peak beside them, MB | s |", "|---|---|---|---|---|"]
    lines += [
        f"| {WAYS[way]} | {dtype} | {weights / MB:,.0f} | {peak / MB:,.0f} | {seconds:.1f} |"
        for way, dtype, (weights, peak, seconds) in rows
    ]
    return "\n".join(lines)


def main(
    width: Annotated[int, typer.Option(help="Width of the model.")] = 1024,
    layers: Annotated[int, typer.Option(help="Layers.")] = 4,
    vocabulary: Annotated[int, typer.Option(help="Size of the vocabulary.")] = 128_256,
    context: Annotated[int, typer.Option(help="Tokens of a batch.")] = 2048,
    batches: Annotated[int, typer.Option(help="Batches.")] = 2,
) -> None:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_pair(Path(folder), width=width, layers=layers, vocabulary=vocabulary)
        for dtype in ("float32", "bfloat16"):
            for way in WAYS:
                rows.append((way, dtype, measure(way, Path(folder), dtype, context, batches)))
    print(f"{layers} layers of {width}, vocabulary {vocabulary:,}, {batches} batches of {context} tokens, CPU\n")
    print(format_table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        typer.run(main)
