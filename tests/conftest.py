"""Fixtures of all tests: tiny checkpoints, and the command line in this process.

    tiny(...)               a fresh tiny random Llama checkpoint: 2 layers, 4 heads of 16, vocabulary 128
    pickled(directory)      the same checkpoint as pytorch_model.bin
    cli("convert", ...)     runs the command line and gives its exit code and what it printed
    refuse(..., says=...)   runs one that must be refused without a trace, and looks for parts of its message
    tensors(directory)      every tensor of a checkpoint's safetensors files
    tree(directory)         everything below a directory, to show that nothing has changed
    load(directory)         the model, as transformers loads it, with nothing missing and nothing left over

Checkpoints are built once per session and copied. What damages them is the tests' own. torch and transformers are
imported where they are needed: who hands the tests out to workers reads this file too, before there are any.
"""

import functools
import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from mha2gqa.cli import main

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

COMPANIONS = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"model_max_length": 64}',
    "chat_template.jinja": "{{ messages }}",
    "modeling_own.py": "answer = 42\n",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
}

Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Run:
    """What a run of the command line left."""

    code: int
    out: str
    err: str


def pytest_collection_finish() -> None:
    """What torch and transformers have made by now stays: looking through it for garbage took 8 % of the contract."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded() -> None:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    for kind in (PreTrainedConfig, GenerationConfig):  # said of each that is read, to nobody: 6 % of the contract
        patch.object(kind, "__repr__", object.__repr__).start()
    patch.object(re, "_MAXCACHE", 1 << 16).start()  # an expression for each tensor that is loaded
    torch.set_num_threads(1)  # tiny models are slower on several, and the workers share the cores


@pytest.fixture(autouse=True, scope="session")
def _nothing_waits_for_the_disk() -> None:
    """What tests write need not outlive a power cut: eight waits a conversion. Tests of crashes have their own."""
    os.fsync = os.fstat  # a descriptor that is none is still refused


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    from tests.families.tiny import tiny_config, tiny_model

    @functools.cache
    def build(dtype: "torch.dtype", max_shard_size: str, **overrides: Any) -> Path:
        directory = tmp_path_factory.mktemp("original")
        model = tiny_model(tiny_config("llama", **overrides)).to(dtype)
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        for name, text in COMPANIONS.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)
        return directory

    return build


@pytest.fixture
def tiny(_original: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    import torch

    def make(
        name: str = "source", *, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **overrides: Any
    ) -> Path:
        return Path(shutil.copytree(_original(dtype, max_shard_size, **overrides), tmp_path / name))

    return make


@pytest.fixture
def pickled(tensors: Callable[[Path], Tensors]) -> Callable[..., Path]:
    """Replace the safetensors of a checkpoint; more than one shard makes an index."""

    import torch

    def make(directory: Path, content: Any = None, *, shards: int = 1, **options: Any) -> Path:
        state = tensors(directory) if content is None else content
        for file in directory.glob("model*.safetensors*"):
            file.unlink()
        if shards == 1:
            torch.save(state, directory / "pytorch_model.bin", **options)
            return directory
        weight_map: dict[str, str] = {}
        for number in range(shards):
            file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
            names = list(state)[number::shards]
            torch.save({name: state[name] for name in names}, directory / file, **options)
            weight_map |= dict.fromkeys(names, file)
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return directory

    return make


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Run]:
    """Run in `tmp_path`, where outputs without a directory go."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["mha2gqa", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Run(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def refuse(cli: Callable[..., Run], tmp_path: Path, tree: Callable[..., Any]) -> Callable[..., None]:
    """Run a command line that must be refused without a trace, and hold its message against its parts."""

    def run(*arguments: object, says: tuple[str, ...]) -> None:
        before = tree(tmp_path)
        answer = cli(*arguments)
        assert tree(tmp_path) == before
        assert (answer.code, answer.out) == (1, ""), answer.err
        assert answer.err.startswith("error: ")
        assert answer.err.endswith(".\n")
        assert answer.err.count("\n") == 1, answer.err
        assert not [part for part in says if part not in answer.err], answer.err

    return run


@pytest.fixture(scope="session")
def tensors() -> Callable[[Path], Tensors]:
    from safetensors.torch import load_file

    def read(directory: Path) -> Tensors:
        files = sorted(directory.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    return read


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    def read(directory: Path) -> dict[str, bytes | None]:
        paths = sorted(directory.rglob("*"))
        return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}

    return read


@pytest.fixture(scope="session")
def load() -> "Callable[[Path], PreTrainedModel]":
    from transformers import LlamaForCausalLM

    def read(directory: Path) -> "PreTrainedModel":
        model, info = LlamaForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
        assert not any(info.values()), info
        return model

    return read
