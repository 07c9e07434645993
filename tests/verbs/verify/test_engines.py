"""Engines of others held against transformers: llama.cpp for real, and what is said of vLLM's answers."""

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mha2gqa.engines import Setup, open_engine
from mha2gqa.engines.llama_cpp import gguf_path
from mha2gqa.engines.printed import heard
from mha2gqa.engines.vllm import Vllm
from mha2gqa.verbs.export.gguf import write_gguf
from mha2gqa.verbs.verify import engine_level
from mha2gqa.verbs.verify.engine_level import lengths
from tests.conftest import Run
from tests.forks import forked_converter
from tests.verbs.export.subjects import save_readable

Cli = Callable[..., Run]
ENGINE = ("--level", "load", "--engine", "llama.cpp")


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_readable(tmp_path_factory.mktemp("engines"))
    with forked_converter():
        write_gguf(directory, "f32", force=False)
    return directory


def test_llama_cpp_makes_of_a_result_what_transformers_makes_of_it(readable: Path, cli: Cli) -> None:
    run = cli("verify", readable, *ENGINE, "--json")
    assert run.code == 0, run.err
    assert not run.err
    engine = json.loads(run.out)["engine"]
    assert (engine["name"], engine["agreed"], engine["findings"]) == ("llama.cpp", engine["written"], [])
    assert 0 < engine["largest_difference"] < 1e-4
    assert engine["behind"] == 0
    assert (engine["cache_measured"], engine["cache_formula"]) == (512, 512)
    assert "1024 cells,   2 layers" in engine["cache"]
    told = cli("verify", readable, *ENGINE)
    assert "as transformers writes them" in told.out
    assert "512 bytes a token, 512 bytes a token by formula" in told.out


@pytest.mark.parametrize(
    ("context", "bounded", "read", "written"),
    [
        (512, [], 48, 24),
        (512, [64], 80, 24),
        (512, [64, 256], 80, 24),
        (8192, [2032], 2048, 24),
        (8192, [2033], 48, 24),
        (90, [64], 65, 24),
        (30, [], 19, 10),
    ],
)
def test_an_engine_reads_beyond_a_window_that_is_not_too_long(
    context: int, bounded: list[int], read: int, written: int
) -> None:
    length, count = lengths(context, bounded)
    assert (length - count - 1, count) == (read, written)
    assert length <= context


def test_a_window_that_was_not_filled_is_told(readable: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_level, "windows", lambda model: [None, 4096])
    run = cli("verify", readable, *ENGINE)
    assert "of 4,096 tokens was not filled: nothing tells whether it is heeded" in run.out
    monkeypatch.setattr(engine_level, "windows", lambda model: [None, 16])
    assert "was not filled" not in cli("verify", readable, *ENGINE).out


def test_a_file_of_another_model_is_found_out(readable: Path, cli: Cli, tmp_path: Path) -> None:
    other = save_readable(tmp_path, groups=4)
    file = gguf_path(readable, "f32")
    file.rename(tmp_path / "kept.gguf")
    with forked_converter():
        shutil.copyfile(write_gguf(other, "f32", force=False), file)
    run = cli("verify", readable, *ENGINE)
    (tmp_path / "kept.gguf").replace(file)
    assert run.code == 3
    assert "llama.cpp finds other probabilities" in run.out
    assert "keeps 1,024 bytes a token; the formula says 512" in run.out
    assert "serve it with another engine" in run.out


def test_what_an_engine_cannot_run_is_refused(
    tiny: Callable[..., Path], cli: Cli, refuse: Callable[..., None], tmp_path: Path
) -> None:
    assert cli("convert", tiny(), "-g", 2, "-o", "made").code == 0
    made = tmp_path / "made"
    refuse("verify", made, "--engine", "vllm", says=("needs the package vllm, which is not installed",))
    refuse("verify", made, *ENGINE, says=("There are 0 GGUF files beside", "Make it: mha2gqa export"))
    gguf_path(made, "f16").write_bytes(b"GGUF")
    refuse("verify", made, *ENGINE, says=("llama.cpp does not load",))


def test_what_is_printed_is_heard_and_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with heard() as printed:
        os.write(1, b"inside\n")
        subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('a child')"], check=True)
        assert printed() == "inside\na child"
    os.write(1, b"outside\n")
    assert capfd.readouterr() == ("outside\n", "")


def test_vllm_is_asked_for_what_is_likely_after_each_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def likely(token: int) -> dict[int, Any]:
        return {token: types.SimpleNamespace(logprob=-float(token))}

    class LLM:
        def __init__(self, **options: Any) -> None:
            assert options["enable_prefix_caching"] is False

        def generate(self, prompts: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
            asked.append((prompts, sampling))
            output = types.SimpleNamespace(logprobs=[likely(3)], token_ids=(7, 8))
            return [types.SimpleNamespace(prompt_logprobs=[None, likely(1), likely(2)], outputs=[output])]

    module = types.ModuleType("vllm")
    module.__dict__.update(LLM=LLM, SamplingParams=dict, __spec__=object())
    monkeypatch.setitem(sys.modules, "vllm", module)
    dead = types.SimpleNamespace(EngineDeadError=RuntimeError)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", dead)
    engine = open_engine("vllm", Setup(directory=tmp_path, dtype="float32", length=8))
    assert engine.follow([4, 5, 6], 2) == [{1: -1.0}, {2: -2.0}, {3: -3.0}]
    assert engine.write([4], 2) == [7, 8]
    assert [sampling["max_tokens"] for _, sampling in asked] == [1, 2]
    assert asked[0][0] == [{"prompt_token_ids": [4, 5, 6]}]
    assert isinstance(engine, Vllm)
    printed = "GPU KV cache size: 1,048,576 tokens\nAvailable KV cache memory: 2.00 GiB"
    assert engine.cache(printed).per_token == 2048
    assert engine.cache("").told == ""
