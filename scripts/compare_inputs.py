"""The inputs of `compare_outputs.py`: tiny random checkpoints, copies of the reference, texts, and damaged checkpoints.

    python scripts/compare_inputs.py INPUTS TREE

They are made once and read by every version of the code that is compared. `catalogue.json`, which is written last,
lists the checkpoints of `models/` with their model type and the numbers of KV heads that they can be converted to, so
that cases can be made without the helpers of the tests, which only this module imports, and only when it makes inputs.
Nothing of mha2gqa is imported here.
"""

import importlib
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast
from transformers.utils import logging

CATALOGUE = "catalogue.json"
READERS = ("llama", "qwen3", "gemma2", "phi3", "olmo2", "qwen2_moe", "eurobert", "gpt2", "bloom", "bert", "t5", "bart")
"""Model types of which there is a copy with a tokenizer, in `readers/`; `base` is the Llama without its head."""
_LETTERS = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(code): code - 29 for code in range(32, 123)}
_KEY, _VALUE = "model.layers.1.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
_SHARD, _INDEX = "model-00002-of-00003.safetensors", "model.safetensors.index.json"

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]


def make_inputs(folder: Path, tree: Path) -> None:
    """Make everything.

    Args:
        folder: Where; what an interrupted run has left there goes first.
        tree: Whose reference checkpoint and recipes are copied.
    """
    if folder.exists():
        shutil.rmtree(folder)
    catalogue = [*_families(folder / "models"), *_hosted(folder / "models"), *_shipped(folder / "models")]
    _readers(folder, catalogue)
    _references(next(path.parent for path in tree.rglob("training.json")), folder)
    (folder / "recipes").mkdir()
    for recipe in (tree / "configs").rglob("*.yaml"):
        shutil.copy(recipe, folder / "recipes")
    _texts(folder)
    _tasks(folder)
    _damaged(folder)
    (folder / CATALOGUE).write_text(json.dumps(catalogue, indent=1))


def slug(name: str) -> str:
    """Return a name as a file can have it."""
    return re.sub(r"[^\w.-]+", "-", name)


def _entry(kind: str, name: str, model_type: str, groups: list[int]) -> dict[str, Any]:
    return {"kind": kind, "name": slug(name), "type": model_type, "groups": groups}


def _families(folder: Path) -> Iterator[dict[str, Any]]:
    tiny = importlib.import_module("tests.families.tiny")
    for case in importlib.import_module("tests.families.cases").CASES:
        tiny.save_tiny(case.model_type, folder / slug(str(case)), **case.overrides)
        fewer = [count for count in case.groups if count < case.source_heads]
        yield _entry("family", str(case), case.model_type, fewer)


def _hosted(folder: Path) -> Iterator[dict[str, Any]]:
    sources = importlib.import_module("tests.hosts.sources")
    for name, source in sources.SOURCES.items():
        sources.build(source).save_pretrained(folder / slug(f"host {name}"))
        yield _entry("host", f"host {name}", source.config.model_type, list(source.groups))


def _shipped(folder: Path) -> Iterator[dict[str, Any]]:
    for subject in importlib.import_module("tests.shipped.subjects").SUBJECTS:
        name = f"shipped {subject.model_type}"
        subject.native().save_pretrained(folder / slug(name))
        yield _entry("pairs" if subject.seq2seq else "shipped", name, subject.model_type, [2, 1])


def _readers(folder: Path, catalogue: list[dict[str, Any]]) -> None:
    """Copy some of the models and give them a tokenizer."""
    for model_type in READERS:
        found = [one for one in catalogue if one["type"] == model_type and one["kind"] != "host"]
        target = shutil.copytree(folder / "models" / found[0]["name"], folder / "readers" / model_type)
        _save_tokenizer(target, ends=found[0]["kind"] == "pairs")
        if found[0]["kind"] == "pairs":
            _edit(target / "config.json", pad_token_id=0, decoder_start_token_id=2)
    AutoModel.from_pretrained(folder / "readers/llama").save_pretrained(folder / "readers/base")
    _save_tokenizer(folder / "readers/base", ends=False)


def _save_tokenizer(folder: Path, *, ends: bool) -> None:
    """Write a tokenizer that makes each printable character a token, and with `ends` ends every text."""
    core = Tokenizer(models.WordLevel(_LETTERS, unk_token="<unk>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"bos_token": "<s>"}
    if ends:
        core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        special = {"pad_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)


def _edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _references(reference: Path, folder: Path) -> None:
    """Copy the reference checkpoint: as it is, in other dtypes, in pickles, and in several files."""
    tensors = load_file(reference / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        target = shutil.copytree(reference, folder / "references" / name)
        if dtype is not torch.bfloat16:
            cast = {key: tensor.to(dtype) for key, tensor in tensors.items()}
            save_file(cast, target / "model.safetensors", {"format": "pt"})
            _edit(target / "config.json", dtype=name)
    for shards, name in ((1, "bin"), (3, "bin-shards"), (3, "shards")):
        target = shutil.copytree(reference, folder / "references" / name)
        (target / "model.safetensors").unlink()
        _save_shards(target, tensors, shards, pickled=name.startswith("bin"))


def _save_shards(folder: Path, tensors: Tensors, shards: int, *, pickled: bool) -> None:
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    files = {f"{stem}-{n + 1:05d}-of-{shards:05d}.{suffix}": list(tensors)[n::shards] for n in range(shards)}
    if shards == 1:
        files = {f"{stem}.{suffix}": list(tensors)}
    for file, names in files.items():
        content = {name: tensors[name] for name in names}
        torch.save(content, folder / file) if pickled else save_file(content, folder / file, {"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _texts(folder: Path) -> None:
    """Write texts for the reference (its own language) and for the tiny models (random letters), and pairs."""
    place = folder / "texts"
    place.mkdir()
    source = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text(encoding="utf-8")
    (place / "code.txt").write_text(source, encoding="utf-8")
    rows = [{"id": number, "body": part} for number, part in enumerate(source.split("\nclass ")) if part.strip()]
    (place / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "empty.txt").write_text(" \n")
    (place / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (place / "broken.jsonl").write_text('{"text": \n')
    draw = torch.Generator().manual_seed(11)
    letters = ["".join(map(chr, torch.randint(33, 96, (60,), generator=draw).tolist())) for _ in range(80)]
    (place / "letters.txt").write_text("".join(letters))
    (place / "letters.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in letters))
    pairs = [{"source": text[: 8 + place % 9], "target": text[:8][::-1]} for place, text in enumerate(letters)]
    (folder / "texts/pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def _tasks(folder: Path) -> None:
    """Write a benchmark of our own, for lm-evaluation-harness: which of three words a line goes on with."""
    words = Path(sysconfig.get_paths()["stdlib"], "heapq.py").read_text(encoding="utf-8").split()[:40]
    rows = [
        {"start": " ".join(words[at : at + 3]), "choices": [words[at + 3], words[at], "of"], "answer": 0}
        for at in range(0, len(words) - 4, 5)
    ]
    data = folder / "texts/words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    task = {
        "task": "next_word",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{start}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": scores,
    }
    (folder / "tasks").mkdir()
    (folder / "tasks/next_word.yaml").write_text(json.dumps(task))


def _damaged(folder: Path) -> None:
    """Write copies of the tiny Llama that a command must refuse, and the sharded one that some of them are made of."""
    whole = folder / "readers/llama"
    shards = shutil.copytree(whole, folder / "damaged/none-shards")
    _save_shards(shards, load_file(shards / "model.safetensors"), 3, pickled=False)
    (shards / "model.safetensors").unlink()
    for table, source in ((_DAMAGES, whole), (_SHARD_DAMAGES, shards)):
        for name, damage in table.items():
            damage(Path(shutil.copytree(source, folder / "damaged" / name)))


def _config(**changes: Any) -> Damage:
    return lambda place: _edit(place / "config.json", **changes)


def _text(name: str, content: str) -> Damage:
    return lambda place: (place / name).write_text(content)


def _remove(name: str) -> Damage:
    return lambda place: (place / name).unlink()


def _truncate(name: str) -> Damage:
    return lambda place: os.truncate(place / name, (place / name).stat().st_size - 1)


def _tensors(change: Callable[[Tensors], object], file: str = "model.safetensors") -> Damage:
    def damage(place: Path) -> None:
        content = load_file(place / file)
        change(content)
        save_file(content, place / file, {"format": "pt"})

    return damage


def _pickle(wrap: Callable[[Tensors], object]) -> Damage:
    def damage(place: Path) -> None:
        content = wrap(load_file(place / "model.safetensors"))
        (place / "model.safetensors").unlink()
        torch.save(content, place / "pytorch_model.bin")

    return damage


_DAMAGES: Mapping[str, Damage] = {
    "no-config": _remove("config.json"),
    "config-not-json": _text("config.json", "{"),
    "config-a-list": _text("config.json", "[]"),
    "no-type": _config(model_type=None),
    "unknown-type": _config(model_type="lama"),
    "latent": _config(model_type="deepseek_v3"),
    "two-towers": _config(model_type="clip"),
    "no-attention": _config(model_type="mamba"),
    "position-heads": _config(model_type="xlnet"),
    "heads-as-text": _config(num_key_value_heads="four"),
    "no-heads": _config(num_key_value_heads=0),
    "uneven-heads": _config(num_key_value_heads=3),
    "other-width": _config(head_dim=8),
    "quantised": _config(quantization_config={"quant_method": "gptq"}),
    "no-weights": _remove("model.safetensors"),
    "truncated": _truncate("model.safetensors"),
    "empty": _text("model.safetensors", ""),
    "pointer": _text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
    "no-key": _tensors(lambda content: content.pop(_KEY)),
    "other-key": _tensors(lambda content: content.update({_KEY: torch.zeros(48, 64)})),
    "int8": _tensors(lambda content: content.update({_KEY: content[_KEY].to(torch.int8)})),
    "fp8": _tensors(lambda content: content.update({_KEY: content[_KEY].to(torch.float8_e4m3fn)})),
    "nan": _tensors(lambda content: content[_KEY].view(-1).__setitem__(-1, float("nan"))),
    "infinity": _tensors(lambda content: content[_VALUE].view(-1).__setitem__(0, float("inf"))),
    "overflow": _tensors(lambda content: content.update({_VALUE: content[_VALUE] * 1e38})),
    "adapter-beside": _text("adapter_config.json", "{}"),
    "pickle-with-code": _pickle(lambda content: content | {"more": Path("nowhere")}),
    "pickle-wrapped": _pickle(lambda content: {"state_dict": content}),
    "pickle-of-a-list": _pickle(lambda content: [*content.values()]),
    "no-tokenizer": _remove("tokenizer.json"),
}
_SHARD_DAMAGES: Mapping[str, Damage] = {
    "no-shard": _remove(_SHARD),
    "truncated-shard": _truncate(_SHARD),
    "index-not-json": _text(_INDEX, "{"),
    "index-empty": lambda place: _edit(place / _INDEX, weight_map={}),
    "index-upwards": lambda place: _edit(place / _INDEX, weight_map={_KEY: "../x.safetensors"}),
    "index-of-another": lambda place: _edit(place / _INDEX, weight_map={"ghost": _SHARD}),
    "stale-file": lambda place: shutil.copy(place / _SHARD, place / "model.safetensors"),
}

if __name__ == "__main__":
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    make_inputs(Path(sys.argv[1]), Path(sys.argv[2]))
