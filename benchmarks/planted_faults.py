"""What `verify` finds: faults planted one at a time in conversions of a tiny model, each way to convert for itself.

    python benchmarks/planted_faults.py                      # writes docs/reference/planted-faults.md
    python benchmarks/planted_faults.py --ways mean          # prints that column alone

The faults are `plant.py`'s. The files are verified first; where nothing is found there, both models are loaded and run,
and then compared on text. A way to convert is a line of `WAYS`.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from plant import KINDS, Case, Fault
from tokenizers import Tokenizer, models, pre_tokenizers

from mha2gqa import ConvertOptions, VerifyOptions, convert, verify
from mha2gqa.errors import Mha2GqaError

_CONTEXT = 32
_TEXT: Mapping[str, Any] = {"context": _CONTEXT, "tokens": 512}
WAYS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "mean": ({"method": "mean", "groups": 2}, {"groups": 1}),
    "aligned": ({"method": "aligned", "data": ("none",), "groups": 2}, {"groups": 1}),
    "refit": ({"method": "aligned", "refine": "refit", "groups": 2, **_TEXT}, {"groups": 1}),
    "latent": ({"latent": 24, "rope_width": 8, **_TEXT}, {"latent": 16}),
}
"""Column -> options of `convert`, and what is other for another conversion of the same original."""
SEATS: Mapping[str, Mapping[str, str]] = {
    "latent": {"k_proj": "kv_a_proj_with_mqa", "v_proj": "kv_b_proj"},
}
"""Column -> what a result has in the place of keys and values, where its class has none."""
PAGE = Path(__file__).parents[1] / "docs/reference/planted-faults.md"
LEVELS: tuple[tuple[Any, ...], ...] = (("file",), ("load",), ("outputs",))
NAMED, MISSED, REFUSED = "record alone", "**not found**", "refused"


def prepare(directory: Path, ways: Sequence[str]) -> Path:
    """Make an original with a tokenizer and a text, and its conversions; return the directory."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=100,
        max_position_embeddings=64,
    )
    original = directory / "original"
    model: Any = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(original)
    known = {"<unk>": 0, "<s>": 1, **{chr(code): code - 30 for code in range(32, 127)}}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=next(iter(known))))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(original)
    text = directory / "text.txt"
    text.write_text("\n\n".join(f"Line {number}: {number * 7919 % 1009} words, no less." for number in range(60)))
    for way in ways:
        wanted, other = WAYS[way]
        options: dict[str, Any] = {"model": str(original), **wanted}
        if "tokens" in wanted:
            options["data"] = (str(text),)
        convert(ConvertOptions(output=directory / way, **options))
        convert(ConvertOptions(output=directory / f"{way}-other", **{**options, **other}))
    return directory


def found(prepared: Path, way: str, fault: Fault) -> str:
    """Plant one fault, and return at which level verify finds it: a cell of the table."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("original", way, f"{way}-other")
        original, made, other = (Path(shutil.copytree(prepared / name, Path(folder) / name)) for name in names)
        case = Case(original, made, other, SEATS.get(way, {}))
        fault(case)
        witness = ""
        for levels in LEVELS:
            options = VerifyOptions(
                converted=case.made,
                against=str(case.original),
                data=(str(prepared / "text.txt"),),
                context=_CONTEXT,
                tokens=256,
                levels=levels,
                max_ppl_increase=1e9,
                max_kl=_limit(prepared, way),
                min_top1=0.0,
            )
            try:
                report = verify(options)
            except Mha2GqaError:
                return f"{levels[0]}: {REFUSED}"
            if report.findings:
                return str(levels[0])
            if levels == ("file",) and report.file is not None:
                witness = report.file.witness
        return NAMED if witness else MISSED


_limits: dict[Path, float] = {}


def _limit(prepared: Path, way: str) -> float:
    """Return a KL that the sound conversion stays just below, so that the outputs level has a chance."""
    place = prepared / way
    if place not in _limits:
        options = VerifyOptions(
            converted=place, data=(str(prepared / "text.txt"),), context=_CONTEXT, tokens=256, levels=("outputs",)
        )
        outputs = verify(options).outputs
        _limits[place] = 0.0 if outputs is None else 1.01 * outputs.kl.mean
    return _limits[place]


def rows(prepared: Path, ways: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield kind, fault, and where each way's fault is found."""
    for kind, faults in KINDS.items():
        for name, fault in faults.items():
            yield kind, name, [found(prepared, way, fault) for way in ways]


_HEAD = """\
# What verify finds

{count} faults, each planted alone in a conversion of a tiny Llama by each way to convert, to 2 of its 4 KV heads or to
a latent of 24 with a rotary key of 8: {total} runs, of which {missed} found nothing and {named} rest on the record's
word. It is made by `python benchmarks/planted_faults.py`.

- `file`, `load`, `outputs`: the level that finds it, with exit code 3; the files are verified first, and what they show
  needs no model. `refused`: the pair is refused, with exit code 1 and the reason.
- `record alone`: nothing is found, and the verdict says how many tensors only the record's checksums speak for. Limits
  of the outputs level are set just above what the sound conversion loses; the default ones let more of these pass.

A record is no signature. Who can write it can make its checksums fit, and then a tensor that was made with text, or by
a training, has no other witness: it can be told from the right one only by what the model answers. Everything else
follows from the original, whatever the record says: copies are compared with the original's bytes, heads that were
pooled are pooled again, layers that were aligned without text are aligned again (where this machine gives the same bits
for the others), names, shapes, dtypes and config are planned again. A
latent has no key and no value projection: those faults are planted in the projections down to it and up from it.
"""


def page(table: Sequence[tuple[str, str, list[str]]], ways: Sequence[str]) -> str:
    """Return the page."""
    cells = [cell for _, _, found in table for cell in found]
    head = _HEAD.format(count=len(table), total=len(cells), missed=cells.count(MISSED), named=cells.count(NAMED))
    parts = [head]
    for kind in dict.fromkeys(kind for kind, _, _ in table):
        parts.append(f"\n## {kind}\n\n| fault | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}\n")
        parts += [f"| {name} | {' | '.join(found)} |\n" for one, name, found in table if one == kind]
    return "".join(parts)


def main() -> None:
    """Plant every fault, and write or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=None)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ways = options.ways or [*WAYS]
    with tempfile.TemporaryDirectory() as folder:
        table = []
        for row in rows(prepare(Path(folder), ways), ways):
            print(*row, flush=True)
            table.append(row)
    if options.ways is None:
        PAGE.write_text(page(table, ways), encoding="utf-8")


if __name__ == "__main__":
    main()
