"""`convert --latent`: what is written loads as it is, verifies, and is as good as its cache allows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.files.reader import RECORD
from mha2gqa.refine.latent.refiner import LatentRefiner
from mha2gqa.verbs.convert import latents
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


def test_a_tied_table_may_lie_under_the_name_of_the_output(tmp_path: Path, cli: Run) -> None:
    """TinyStories-656K's file has `lm_head.weight` alone, which the config says is the embedding."""
    save_source(tmp_path / "source", tie_word_embeddings=True)
    tensors = read_tensors(tmp_path / "source")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    report(cli, "convert", "source", *SMALL, *TEXT, "-o", "out")
    assert "lm_head.weight" not in read_tensors(tmp_path / "out")
    _, info = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert report(cli, "verify", "out", *TEXT[:2], "--context", 32, *LOOSE)["verdict"] == "within limits"


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


@pytest.mark.parametrize("refine", ["refit", "distil", "joint"])
def test_each_refinement_is_no_worse_on_text_that_it_has_not_seen(refine: str, tmp_path: Path, cli: Run) -> None:
    save_source(tmp_path / "source", rms_norm_eps=1e-3)
    options = (*SMALL, "--rope-frequencies", "ladder:4", *TEXT, "--steps", 20)
    made = report(cli, "convert", "source", *options, "--refine", refine, "-o", "out")
    steps = ["fitted", "refit", "distil"][: 2 if refine == "refit" else 3]
    for layer in made["layers"]:
        assert list(layer["errors"]) == steps
        assert sorted(layer["errors"].values(), reverse=True) == list(layer["errors"].values())
    assert (made["divergence"] is not None) == (refine == "joint")
    if refine == "joint":
        assert made["divergence"][1] <= made["divergence"][0]
    (result,) = (row for row in made["trials"] if row["label"] == "result")
    assert result["refine"] == refine
    answer = cli("verify", "out", *TEXT[:2], "--context", 32, *LOOSE)
    assert answer.code == 0, answer.out
    assert f"rotary key width 8, {refine}" in " ".join(answer.out.split())


def test_the_better_of_two_is_recommended(tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save_source(tmp_path / "source")
    monkeypatch.setattr(latents, "mean_loss", lambda model, _: 2.0 if model.config.model_type == "llama" else 3.0)
    answer = cli("convert", "source", *SMALL, *TEXT, "-o", "out")
    assert answer.code == 0, answer.err
    told = " ".join(answer.out.split())
    assert "1 KV heads lose less in no more cache: take --groups 1 --method aligned with the same text" in told
    assert "take --groups 1 --method aligned" in (tmp_path / "out" / "README.md").read_text()


def test_an_interrupted_run_goes_on_behind_its_last_layer(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_source(tmp_path / "source")
    options = ("convert", "source", *SMALL, "--rope-frequencies", "ladder:4", *TEXT, "--refine", "refit", "-o", "out")
    layer, begun = LatentRefiner._layer, []

    def stop(refiner: LatentRefiner, one: AttentionLayer) -> Any:
        begun.append(one.module)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return layer(refiner, one)

    monkeypatch.setattr(LatentRefiner, "_layer", stop)
    assert cli(*options).code != 0
    assert not (tmp_path / "out").exists()
    assert cli(*options).code == 0
    assert begun == ["model.layers.0.self_attn", "model.layers.1.self_attn", "model.layers.1.self_attn"]


@pytest.mark.parametrize(
    ("model_type", "options", "says"),
    [
        ("llama", SMALL, ("A latent needs calibration text", "--data self")),
        ("llama", ("--latent", 25, "--rope-width", 8, *TEXT), ("A latent of 25", "even numbers", "at most the 128")),
        ("llama", ("--latent", 512, "--rope-width", 64, *TEXT), ("A latent of 512 and a rotary key of 64",)),
        ("llama", (*SMALL, "--rope-frequencies", "any", *TEXT), ("'any' is no rotary key of 4 planes", "portable")),
        ("qwen3", (*SMALL, *TEXT), ("norms of their own", "--groups")),
        ("gemma2", (*SMALL, *TEXT), ("soft caps",)),
        ("t5", (*SMALL, *TEXT), ("an encoder and cross-attention",)),
        ("bert", (*SMALL, *TEXT), ("cannot be written in latent attention",)),
        ("deepseek_v3", (*SMALL, *TEXT), ("latent already",)),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    model_type: str, options: tuple[object, ...], says: tuple[str, ...], tmp_path: Path, refuse: Callable[..., None]
) -> None:
    save_source(tmp_path / "source", model_type)
    refuse("convert", "source", *options, "-o", "out", says=says)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-g", 2, *SMALL[:2]),
        (*SMALL, "--method", "aligned"),
        ("-g", 2, "--rope-width", 8),
        (*SMALL, "--grouping", "similar"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_wrong_usage(options: tuple[object, ...], cli: Run) -> None:
    assert cli("convert", "source", *options).code == 2


def test_16_bits_are_refined_in_the_units_that_they_are_written_in(tmp_path: Path, cli: Run) -> None:
    """fp16 has its own size of what is normed, which the norm before attention makes up for; in another nothing fits.

    Logits are of tokens that the text does not have.
    """
    save_source(tmp_path / "source", dtype=torch.float16, head_dim=16)
    options = ("--latent", WHOLE, "--rope-width", WHOLE, "--rope-frequencies", "free", "--refine", "refit")
    made = report(cli, "convert", "source", *options, *TEXT, "-o", "out")
    assert all(error < 1e-4 for layer in made["layers"] for error in layer["errors"].values())
    assert (logits(tmp_path / "out") - logits(tmp_path / "source")).abs().max() < 0.2
    kinds = {tensor.dtype for tensor in read_tensors(tmp_path / "out").values()}
    assert kinds == {torch.float16}
