"""`convert --latent`: what is written loads as it is, verifies, and is as good as its cache allows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from mha2gqa.files.reader import RECORD
from tests.families.oracle import input_ids, read_tensors
from tests.verbs.verify.subjects import edit_json, flip_bit, save_source, save_text

LOOSE = ("--max-ppl-increase", "1000%", "--max-kl", 100, "--min-top1", 0)
TEXT = ("--data", "text.txt", "--context", 32, "--tokens", 2048)
WHOLE = 4 * 16
"""Rows of the keys, and of the values, of a tiny model."""
SMALL = ("--latent", 24, "--rope-width", 8)
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, another eps": ("llama", {"rms_norm_eps": 1e-3, "head_dim": 16}),
    "phi3, fused": ("phi3", {"head_dim": 16}),
    "gemma, tied": ("gemma", {"head_dim": 16}),
    "qwen2, biases": ("qwen2", {}),
    "olmo": ("olmo", {}),
}
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def text(tmp_path: Path) -> None:
    save_text(tmp_path / "text.txt", 4000)


def report(cli: Run, *arguments: object) -> dict[str, Any]:
    answer = cli(*arguments, "--json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


@torch.no_grad()
def logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found: torch.Tensor = model(input_ids=input_ids()).logits
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_lost_in_the_cache_of_the_original(name: str, tmp_path: Path, cli: Run) -> None:
    model_type, overrides = SOURCES[name]
    save_source(tmp_path / "source", model_type, **overrides)
    wanted = logits(tmp_path / "source")
    width = json.loads((tmp_path / "source" / "config.json").read_text()).get("head_dim") or 16
    whole = 4 * width
    options = ("--latent", whole, "--rope-width", whole, "--rope-frequencies", "free")
    made = report(cli, "convert", "source", *options, *TEXT, "-o", "out")
    assert (made["cached_before"], made["cached_after"]) == (2 * whole, 2 * whole)
    model, info = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert (logits(tmp_path / "out") - wanted).abs().max() < 1e-3
    assert model.config.kv_lora_rank + model.config.qk_rope_head_dim == 2 * whole
    found = report(cli, "verify", "out", *TEXT[:2], "--context", 32, *LOOSE)
    assert found["verdict"] == "within limits"
    assert all(layer["error"] < 1e-3 for layer in found["outputs"]["layers"])


def test_each_level_of_verify_knows_it(tmp_path: Path, cli: Run) -> None:
    save_source(tmp_path / "source", rms_norm_eps=1e-3)
    made = report(cli, "convert", "source", *SMALL, *TEXT, "-o", "out")
    assert (made["cached_before"], made["cached_after"], made["latent_after"], made["rope_width_after"]) == (
        128,
        32,
        24,
        8,
    )
    assert (made["cache_after"], made["cache_before"]) == (2 * 32 * 4, 2 * 128 * 4)
    found = report(cli, "verify", "out", *TEXT[:2], "--context", 32, *LOOSE)
    assert found["verdict"] == "within limits"
    assert (found["file"]["compared"], found["file"]["recomputed"], found["file"]["checksummed"]) == (10, 3, 10)
    cache = next(check for check in found["load"]["checks"] if check["name"] == "cache bytes a token")
    assert cache["passed"]
    assert "1,024 -> 256 measured" in cache["detail"]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.weight",  # copied
        "model.layers.1.mlp.down_proj.weight",  # made
        "model.layers.1.self_attn.kv_b_proj.weight",  # by checksum
    ],
)
def test_a_flipped_bit_is_found(name: str, tmp_path: Path, cli: Run) -> None:
    save_source(tmp_path / "source", rms_norm_eps=1e-3)
    assert cli("convert", "source", *SMALL, *TEXT, "-o", "out").code == 0
    flip_bit(tmp_path / "out", name)
    answer = cli("verify", "out", "--level", "file")
    assert answer.code == 3
    assert name in answer.out
    edit_json(tmp_path / "out" / "config.json", "rope_parameters", "rope_theta", value=2.0)
    assert "config.json: rope_parameters.rope_theta" in cli("verify", "out", "--level", "file").out


def test_what_was_chosen_is_told_and_can_be_asked_for(tmp_path: Path, cli: Run) -> None:
    save_source(tmp_path / "source")
    made = report(cli, "convert", "source", "--latent-like-groups", 1, *TEXT, "-o", "out")
    tried = [row for row in made["trials"] if row["label"] == "tried"]
    assert made["cached_after"] == 32
    assert len({row["way"] for row in tried}) == len(tried) > 3
    assert sum("(free)" in row["way"] for row in tried) == 1
    (result,) = (row for row in made["trials"] if row["label"] == "result")
    assert result["loss"] == min(row["loss"] for row in tried if "(free)" not in row["way"])
    (beside,) = (row for row in made["trials"] if row["label"] == "beside")
    assert beside["way"] == "1 KV heads, aligned"
    options = json.loads((tmp_path / "out" / RECORD).read_text())["options"]
    asked = [part for name in ("latent", "rope-width", "rope-frequencies") for part in (f"--{name}", options[name])]
    again = report(cli, "convert", "source", *asked, *TEXT, "-o", "again")
    assert [row["label"] for row in again["trials"]] == ["tried", "result", "beside"]
    first, second = (read_tensors(tmp_path / name) for name in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_dry_run_writes_nothing(tmp_path: Path, cli: Run, tree: Callable[[Path], Any]) -> None:
    save_source(tmp_path / "source")
    before = tree(tmp_path)
    made = report(cli, "convert", "source", "--latent-like-groups", 1, *TEXT, "--dry-run")
    assert tree(tmp_path) == before
    assert (made["written"], made["cached_after"]) == (False, 32)
    assert made["notes"]
    shapes = {row["name"]: row["after"] for row in made["tensors"]}
    latent, width = made["latent_after"], made["rope_width_after"]
    assert shapes["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"] == [latent + width, 64]
