"""Faults for `planted_faults.py`: what each does to a converted checkpoint, its record, its files or its original.

A fault is a function of a `Case`; the tables at the end name them by kind. Where a fault is forged, the record's
checksum is made to fit, as one who means harm would do.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import xxhash
from safetensors.torch import load_file, save_file

WEIGHTS, RECORD, CONFIG = "model.safetensors", "mha2gqa.json", "config.json"
LAYER = "model.layers.1."
K, V, Q, OUT = (f"{LAYER}self_attn.{name}_proj.weight" for name in "kvqo")
MLP, UP = f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", f"{LAYER}input_layernorm.weight"

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A conversion and its original, both to be damaged, and another conversion of the same original."""

    original: Path
    made: Path
    other: Path
    seats: Mapping[str, str] = field(default_factory=dict)
    """Parts of names, and what the result has in their place."""

    def seat(self, name: str) -> str:
        """Return the name that a tensor of the original has in the result, or what took its place."""
        return ".".join(self.seats.get(part, part) for part in name.split("."))

    def tensors(self, change: Callable[[Tensors], object], *, of: str = "made", forged: bool = False) -> None:
        """Change the weights; forged, the record's checksums become theirs."""
        path = getattr(self, of) / WEIGHTS
        was = {seat: part for part, seat in self.seats.items()}
        content = load_file(path)
        tensors = {".".join(was.get(part, part) for part in name.split(".")): one for name, one in content.items()}
        change(tensors)
        if of == "made":
            tensors = {self.seat(name): one for name, one in tensors.items()}
        save_file({name: one.contiguous() for name, one in tensors.items()}, path, {"format": "pt"})
        if forged:
            self.record(lambda record: _sum_again(record, tensors))

    def json(self, name: str, change: Callable[[dict[str, Any]], object], *, of: str = "made") -> None:
        """Change a JSON file."""
        path = getattr(self, of) / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def record(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the record."""
        self.json(RECORD, change)


Fault: TypeAlias = Callable[[Case], object]


def _sum_again(record: dict[str, Any], tensors: Tensors) -> None:
    for name, entry in record["tensors"].items():
        if name in tensors:
            entry["xxh3_128"] = xxhash.xxh3_128_hexdigest(tensors[name].contiguous().view(torch.uint8).numpy().data)


def _set(name: str, make: Callable[[torch.Tensor], torch.Tensor], tensors: Tensors) -> None:
    tensors[name] = make(tensors[name].clone())


def _bit(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1).view(torch.uint8)[5] ^= 1
    return tensor


def _filled(value: float, tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[3] = value
    return tensor


def _noisy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1e-3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))


def _blocks(parts: int, dim: int, tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(tensor.chunk(parts, dim))[::-1], dim)


def _exchange(one: str, other: str, tensors: Tensors) -> None:
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _at(name: str, make: Callable[[torch.Tensor], torch.Tensor], *, forged: bool = False, of: str = "made") -> Fault:
    return lambda case: case.tensors(partial(_set, name, make), forged=forged, of=of)


def _weights(change: Callable[[Tensors], object], *, forged: bool = False) -> Fault:
    return lambda case: case.tensors(change, forged=forged)


def _both(*faults: Fault) -> Fault:
    def plant(case: Case) -> None:
        for fault in faults:
            fault(case)

    return plant


def _key(name: str, *keys: str, value: Any, of: str = "made") -> Fault:
    def change(case: Case, content: dict[str, Any]) -> None:
        holder = content
        for key in keys[:-1]:
            holder = holder.setdefault(case.seat(key) if keys[0] == "tensors" else key, {})
        holder[keys[-1]] = value

    return lambda case: case.json(name, partial(change, case), of=of)


def _file(name: str, text: str = "", *, of: str = "made") -> Fault:
    def plant(case: Case) -> None:
        path = getattr(case, of) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return plant


def _twice(name: str, key: str, value: str) -> Fault:
    def plant(case: Case) -> None:
        path = case.made / name
        path.write_text(path.read_text().replace("{", f'{{"{key}": {value},', 1))

    return plant


def _stray(name: str) -> Fault:
    return lambda case: save_file({"x": torch.zeros(2)}, case.made / name)


def _cut(case: Case) -> None:
    content = (case.made / WEIGHTS).read_bytes()
    (case.made / WEIGHTS).write_bytes(content[:-9])


def _original_of_another_seed(case: Case) -> None:
    generator = torch.Generator().manual_seed(5)

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = torch.randn(tensor.shape, generator=generator) * 0.1

    case.tensors(change, of="original")


def _theta(value: float) -> Fault:
    path = ["rope_parameters", "rope_theta"]

    def add(record: dict[str, Any]) -> None:
        record["config_changes"].append({"path": path, "before": 1e4, "after": value})

    return _both(_key(CONFIG, *path, value=value), lambda case: case.record(add))


_TRAINING = {"train": "all", "objective": "lm", "length": {"steps": 5, "tokens": 9}, "losses": None, "recipe": {}}
_FORGED_K, _FORGED_MLP = _at(K, _noisy, forged=True), _at(MLP, _noisy, forged=True)


def _trained(**more: Any) -> Fault:
    return _both(_key(RECORD, "uptrain", value=[_TRAINING | more]), _file("uptrain.yaml", "steps: 5\n"))


TENSORS: Mapping[str, Fault] = {
    "one bit of a key projection": _at(K, _bit),
    "one bit of a value projection": _at(V, _bit),
    "one bit of a query projection": _at(Q, _bit),
    "one bit of an output projection": _at(OUT, _bit),
    "one bit of an MLP": _at(MLP, _bit),
    "one bit of the embedding": _at(EMBEDDING, _bit),
    "one bit of the output head": _at(HEAD, _bit),
    "one bit of a norm": _at(NORM, _bit),
    "keys scaled by 1.001": _at(K, lambda one: one * 1.001),
    "values scaled by 2": _at(V, lambda one: one * 2),
    "keys negated": _at(K, lambda one: -one),
    "values zero": _at(V, torch.zeros_like),
    "NaN in a key": _at(K, partial(_filled, float("nan"))),
    "NaN in the embedding": _at(EMBEDDING, partial(_filled, float("nan"))),
    "infinity in the output head": _at(HEAD, partial(_filled, float("inf"))),
    "output projection transposed": _at(OUT, lambda one: one.T),
    "keys and values exchanged": _weights(partial(_exchange, K, V)),
    "keys of another layer": _weights(partial(_exchange, K, K.replace("1", "0"))),
    "MLP halves exchanged": _weights(partial(_exchange, MLP, UP)),
    "norms of two layers exchanged": _weights(partial(_exchange, NORM, NORM.replace("1", "0"))),
    "KV heads in another order": _both(_at(K, partial(_blocks, 2, 0)), _at(V, partial(_blocks, 2, 0))),
    "query heads in another order": _at(Q, partial(_blocks, 4, 0)),
    "columns of heads in another order": _at(OUT, partial(_blocks, 4, 1)),
    "rows of the embedding rolled by one": _at(EMBEDDING, lambda one: one.roll(1, 0)),
    "rows of the output head rolled by one": _at(HEAD, lambda one: one.roll(1, 0)),
    "noise of a thousandth in an MLP": _at(MLP, _noisy),
    "keys in BF16": _at(K, lambda one: one.bfloat16()),
    "everything in F16": _weights(lambda tensors: [tensors.update({k: v.half()}) for k, v in [*tensors.items()]]),
    "a tensor missing": _weights(lambda tensors: tensors.pop(NORM)),
    "a tensor too many": _weights(lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)})),
    "a tensor renamed": _weights(lambda tensors: tensors.update({"model.normal.weight": tensors.pop(NORM)})),
    "keys with the old number of heads": _at(K, lambda one: one.repeat(2, 1)),
}
FORGED: Mapping[str, Fault] = {
    "key projection": _FORGED_K,
    "value projection": _at(V, _noisy, forged=True),
    "query projection": _at(Q, _noisy, forged=True),
    "output projection, scaled by 2": _at(OUT, lambda one: one * 2, forged=True),
    "MLP": _FORGED_MLP,
    "embedding, one bit": _at(EMBEDDING, _bit, forged=True),
    "norm": _at(NORM, _noisy, forged=True),
    "output head": _at(HEAD, _noisy, forged=True),
    "MLP, said to be changed": _both(_FORGED_MLP, _key(RECORD, "tensors", MLP, "changed", value=True)),
    "keys, said to be `aligned`": _both(_FORGED_K, _key(RECORD, "options", "method", value="aligned")),
    "keys, said to be `distil`": _both(_FORGED_K, _key(RECORD, "options", "refine", value="distil")),
    "keys, said to be of a later method": _both(_FORGED_K, _key(RECORD, "options", "method", value="later")),
    "keys, said to have read text": _both(_FORGED_K, _key(RECORD, "options", "data", value=["text.txt"])),
    "MLP, said to be trained with the attention": _both(_FORGED_MLP, _trained(train="attention")),
    "MLP, said to be trained with everything": _both(_FORGED_MLP, _trained(changed=21)),
    "MLP, said to be all that a training has changed": _both(_FORGED_MLP, _trained(changed=1)),
    "keys, said to be trained": _both(_FORGED_K, _trained(train="attention", changed=8)),
    "MLP, checksums of the original taken out": _both(_FORGED_MLP, _key(RECORD, "source", "xxh3_128", value={})),
}
RECORDS: Mapping[str, Fault] = {
    "a checksum of the result": _key(RECORD, "tensors", K, "xxh3_128", value="0" * 32),
    "a checksum of the original": _key(RECORD, "source", "xxh3_128", K, value="0" * 32),
    "another number of KV heads": _key(RECORD, "target_heads", value=1),
    "other groups": _key(RECORD, "groups", "model.layers.1.self_attn", value=[[0, 2], [1, 3]]),
    "tensors left out": _key(RECORD, "dropped", value=[NORM]),
    "no change of the config": _key(RECORD, "config_changes", value=[]),
    "rope_theta, in the config, too": _theta(12345.0),
    "a key twice": _twice(RECORD, "format", "1"),
    "that of another conversion": lambda case: shutil.copy(case.other / RECORD, case.made),
    "missing": lambda case: (case.made / RECORD).unlink(),
    "a training without its recipe": _key(RECORD, "uptrain", value=[_TRAINING]),
}
CONFIGS: Mapping[str, Fault] = {
    "rope_theta": _key(CONFIG, "rope_parameters", "rope_theta", value=5e5),
    "rms_norm_eps": _key(CONFIG, "rms_norm_eps", value=1e-2),
    "KV heads": _key(CONFIG, "num_key_value_heads", value=1),
    "query heads": _key(CONFIG, "num_attention_heads", value=8),
    "dtype": _key(CONFIG, "dtype", value="float16"),
    "end of text": _key(CONFIG, "eos_token_id", value=7),
    "class": _key(CONFIG, "architectures", value=["LlamaForSequenceClassification"]),
    "quantisation": _key(CONFIG, "quantization_config", value={"quant_method": "fp8"}),
    "code": _key(CONFIG, "auto_map", value={"AutoModel": "modeling_x.X"}),
    "a key twice": _twice(CONFIG, "rms_norm_eps", "0.5"),
    "tied embeddings": _key(CONFIG, "tie_word_embeddings", value=True),
}
FILES: Mapping[str, Fault] = {
    "another tokenizer": _key("tokenizer.json", "model", "vocab", value={"<unk>": 0, "<s>": 1, "a": 2}),
    "tokenizer_config.json missing": lambda case: (case.made / "tokenizer_config.json").unlink(),
    "added_tokens.json": _file("added_tokens.json", '{"x": 5}'),
    "a chat template": _file("chat_template.jinja", "{{ messages }}"),
    "modeling_x.py": _file("modeling_x.py", "raise SystemExit\n"),
    "custom_generate/generate.py": _file("custom_generate/generate.py", "raise SystemExit\n"),
    "a processor's config": _file("preprocessor_config.json", "{}"),
    "another generation_config.json": _key("generation_config.json", "temperature", value=9.0),
    "a key twice in generation_config.json": _twice("generation_config.json", "max_length", "3"),
    "pytorch_model.bin": _file("pytorch_model.bin", "x"),
    "a shard that no index names": _stray("model-00002-of-00002.safetensors"),
    "weights in a folder": _both(_file("onnx/model.onnx", "x")),
    "model.gguf": _file("model.gguf", "GGUF"),
    "an index of other files": _file("model.safetensors.index.json", '{"weight_map": {"x": "y.safetensors"}}'),
    "weights cut off": _cut,
}
ORIGINALS: Mapping[str, Fault] = {
    "another training": _original_of_another_seed,
    "one bit of a key": _at(K, _bit, of="original"),
    "one bit of a query projection": _at(Q, _bit, of="original"),
    "one bit of an MLP": _at(MLP, _bit, of="original"),
    "rope_theta": _key(CONFIG, "rope_parameters", "rope_theta", value=5e5, of="original"),
    "another tokenizer": _file("tokenizer.json", "{}", of="original"),
}
KINDS: Mapping[str, Mapping[str, Fault]] = {
    "Tensors": TENSORS,
    "Tensors, with the record's checksums forged to fit": FORGED,
    "The record": RECORDS,
    "config.json": CONFIGS,
    "Files beside the weights": FILES,
    "The original": ORIGINALS,
}
