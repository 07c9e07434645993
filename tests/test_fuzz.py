"""Hundreds of mutated inputs through the command line, in one process: each ends in one message, or in a sound result.

    headers, indexes, configs, pickles   a source; what is converted all the same, `verify --level file` passes
    records                              of a conversion; `verify` says what it finds, or refuses
    tables, recipes                      what a conversion learns from, and what a training is told

Mutations are drawn from the kind and its number alone, so that one is made again by its name. Nothing may be raised, no
traceback printed, nothing left beside the output, and no run take longer than `PATIENCE`.
"""

import copy
import functools
import json
import random
import shutil
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.verbs.uptrain.subjects import save_subject

PATIENCE = 20
"""Seconds of one run."""
COUNTS = {"headers": 120, "indexes": 60, "configs": 120, "records": 80, "pickles": 80, "tables": 60, "recipes": 60}
PARTS = 4
"""Of each kind, so that several workers share them."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 5, 2**31, 2**63, 10**30, 0.5, -1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "4", "none", "gpt2", "bert", "t5", "../../etc/passwd", "/dev/zero", "\x1b[2J", "\ud800", "\u202e"),
    *([], {}, [1], [[]], {"a": 1}, {"model_type": "llama"}, ["LlamaForCausalLM"], [None] * 40, "pipeline", ["utils"]),
)
KEYS = (
    *("model_type", "architectures", "auto_map", "quantization_config", "text_config", "num_key_value_heads"),
    *("layer_types", "rope_scaling", "rope_parameters", "torch_dtype", "dtype", "tie_word_embeddings", "hidden_act"),
    *("num_labels", "id2label", "pad_token_id", "attn_implementation", "_attn_implementation", "transformers_version"),
    *("head_dim", "use_cache", "is_decoder", "is_encoder_decoder", "num_hidden_layers"),
)


def generator(kind: str, number: int) -> random.Random:
    return random.Random(f"{kind} {number}")


def mutated(content: Any, rng: random.Random, keys: tuple[str, ...] = ()) -> Any:
    """Return JSON values with a few changes: others in the place of some, keys added, left out or exchanged."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder = rng.choice(list(holders(content)))
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        action = rng.random()
        if isinstance(holder, dict) and (action < 0.25 or not places):
            holder[rng.choice((*keys, *places, "x", "\x1b", "\udfff", ""))] = copy.deepcopy(rng.choice(VALUES))
        elif not places or action < 0.4:
            if places:
                holder.pop(rng.choice(places))
        elif action < 0.55:
            one, other = rng.choice(places), rng.choice(places)
            holder[one], holder[other] = holder[other], holder[one]
        elif action < 0.7 and (numbers := [place for place in places if type(holder[place]) is int]):
            holder[rng.choice(numbers)] += rng.choice((-1, 1, 7, -64, 2**40))
        else:
            holder[rng.choice(places)] = copy.deepcopy(rng.choice(VALUES))
    return content


def holders(content: Any) -> Iterator[Any]:
    """Yield the objects and lists in a value, the outermost ones often."""
    if isinstance(content, (dict, list)):
        yield from [content] * 3
        for inner in content.values() if isinstance(content, dict) else content:
            yield from holders(inner)


def damaged(data: bytes, rng: random.Random, most: int = 1 << 30) -> bytes:
    """Return bytes with a few others, without some, or with some twice; in the first `most`."""
    whole = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        place, size = rng.randrange(min(len(whole), most)), rng.randrange(1, 40)
        action = rng.random()
        if action < 0.6:
            whole[place] = rng.randrange(256)
        elif action < 0.75:
            del whole[place : place + size]
        elif action < 0.9:
            whole[place:place] = whole[place : place + size]
        else:
            whole[place : place + size] = bytes(size)
        if not whole:
            break
    return bytes(whole)


def dump(content: Any) -> str:
    return json.dumps(content)


class Bench:
    """Sources, made once, and a way to run commands on copies of them."""

    def __init__(self, directory: Path, tiny: Callable[..., Path], cli: Callable[..., Any]) -> None:
        self.directory, self._tiny, self._cli = directory, tiny, cli

    @functools.cached_property
    def plain(self) -> Path:
        return self._tiny("plain")

    @functools.cached_property
    def sharded(self) -> Path:
        return self._tiny("sharded", max_shard_size="150KB")

    @functools.cached_property
    def pickled(self) -> Path:
        source = self._tiny("pickled")
        torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
        return source

    @functools.cached_property
    def converted(self) -> Path:
        assert self._cli("convert", self.plain, "-g", 2, "-o", "converted").code == 0
        return self.directory / "converted"

    @functools.cached_property
    def subject(self) -> tuple[Path, Path]:
        return save_subject(self.directory / "subject")

    def copied(self, source: Path) -> Path:
        shutil.rmtree(self.directory / "source", ignore_errors=True)
        return Path(shutil.copytree(source, self.directory / "source"))

    def run(self, *arguments: object) -> int:
        """Run a command; it has to end as every command ends."""
        started = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = self._cli(*arguments)
        assert answer.code in (0, 1, 2, 3), answer.code
        assert "Traceback" not in answer.err, answer.err
        assert "\x1b" not in answer.err + answer.out
        errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (answer.code == 1), answer.err
        assert time.monotonic() - started < PATIENCE
        return int(answer.code)

    def convert(self, source: Path) -> None:
        """Convert; what comes out has to be what verify makes of it."""
        before = {path.name for path in self.directory.iterdir()}
        code = self.run("convert", source, "-g", 2, "-o", "out")
        assert code != 3
        if code == 0:
            assert self.run("verify", "out", "--level", "file") == 0
            shutil.rmtree(self.directory / "out")
        assert {path.name for path in self.directory.iterdir()} == before


def headers(bench: Bench, rng: random.Random) -> None:
    source = bench.copied(bench.plain)
    path = source / "model.safetensors"
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.5:
        header = dump(mutated(json.loads(data[8:end]), rng, ("__metadata__", "lm_head.weight"))).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data[end:])
    else:
        path.write_bytes(damaged(data[:end], rng) + data[end:])
    bench.convert(source)


def indexes(bench: Bench, rng: random.Random) -> None:
    source = bench.copied(bench.sharded)
    path = source / "model.safetensors.index.json"
    content = path.read_bytes()
    is_json = rng.random() < 0.7
    path.write_bytes(dump(mutated(json.loads(content), rng)).encode() if is_json else damaged(content, rng))
    bench.convert(source)


def configs(bench: Bench, rng: random.Random) -> None:
    source = bench.copied(bench.plain)
    path = source / "config.json"
    path.write_text(dump(mutated(json.loads(path.read_text()), rng, KEYS)))
    bench.convert(source)


def pickles(bench: Bench, rng: random.Random) -> None:
    source = bench.copied(bench.pickled)
    path = source / "pytorch_model.bin"
    data = path.read_bytes()
    begins = data.find(b"PK\x03\x04", 4)  # behind the pickle
    part = rng.random()
    if part < 0.5:
        path.write_bytes(damaged(data[:begins], rng) + data[begins:])
    elif part < 0.8:
        path.write_bytes(data[:-3000] + damaged(data[-3000:], rng))  # the table of members
    else:
        path.write_bytes(damaged(data, rng))
    bench.convert(source)


def records(bench: Bench, rng: random.Random) -> None:
    directory = bench.copied(bench.converted)
    path = directory / rng.choice(("mha2gqa.json", "mha2gqa.json", "config.json"))
    content = path.read_bytes()
    is_json = rng.random() < 0.8
    path.write_bytes(dump(mutated(json.loads(content), rng, KEYS)).encode() if is_json else damaged(content, rng))
    bench.run("verify", directory, "--level", "file", "--against", bench.plain)


def tables(bench: Bench, rng: random.Random) -> None:
    converted, documents = bench.subject
    source = converted.parent / "original"
    rows = [json.loads(line) | {"n": 1} for line in documents.read_text().splitlines()]
    name = rng.choice(("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.txt", "rows.tsv"))
    path = bench.directory / name
    if name.endswith(".parquet"):
        pandas.DataFrame(rows).to_parquet(path)
    elif name.endswith(("csv", "tsv")):
        pandas.DataFrame(rows).to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    else:
        rows = mutated(rows, rng, ("messages", "text"))
        path.write_text(dump(rows) if name.endswith(".json") else "\n".join(map(dump, rows)))
    if rng.random() < 0.7:
        path.write_bytes(damaged(path.read_bytes(), rng))
    options = ("-g", 2, "--method", "aligned", "--data", path, "--tokens", 128, "--context", 8, "-o", "out")
    code = bench.run("convert", source, *options)
    if code == 0:
        shutil.rmtree(bench.directory / "out")
    path.unlink()


RECIPE: dict[str, Any] = {
    "data": ["documents.jsonl"],
    "context": 32,
    "steps": 2,
    "train": "kv",
    "objective": "mix",
    "temperature": 2.0,
    "held_out_tokens": 200,
    "seed": 3,
    "trainer": {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "lr_scheduler_kwargs": {},
        "adam_beta1": 0.9,
    },
}


def recipes(bench: Bench, rng: random.Random) -> None:
    converted, documents = bench.subject
    shutil.copy(documents, bench.directory / "documents.jsonl")
    path = bench.directory / "recipe.yaml"
    keys = ("optim", "bf16", "eval_steps", "logging_steps", "warmup_steps", "tokens", "alpha", "column", "trainer")
    content = mutated(RECIPE, rng, keys)
    try:
        text = yaml.safe_dump(content).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        text = dump(content).encode()
    path.write_bytes(text if rng.random() < 0.7 else damaged(text, rng))
    bench.run("uptrain", converted, "--config", path, "-o", "trained", *(["--dry-run"] if rng.random() < 0.9 else []))
    for name in ("trained", ".trained.uptrain"):
        shutil.rmtree(bench.directory / name, ignore_errors=True)


KINDS: dict[str, Callable[[Bench, random.Random], None]] = {
    one.__name__: one for one in (headers, indexes, configs, pickles, records, tables, recipes)
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", COUNTS)
def test_mutations(tiny: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path, kind: str, part: int) -> None:
    bench = Bench(tmp_path, tiny, cli)
    failures = []
    for number in range(part, COUNTS[kind], PARTS):
        try:
            KINDS[kind](bench, generator(kind, number))
        except (Exception, SystemExit) as error:  # whatever it is: all are told, by their numbers
            failures.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]}")
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert not failures, "\n".join(failures)


def test_there_are_enough() -> None:
    assert sum(COUNTS.values()) >= 500
    assert len({generator(kind, number).random() for kind in COUNTS for number in range(COUNTS[kind])}) >= 500
