"""The reference checkpoint that ships with the package: its size, its text, its loss, and the demo on it."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from mha2gqa.reference.corpus import CALIBRATION, HELD_OUT, calibration_files, held_out_files, training_files
from mha2gqa.texts.blocks import held_out_loss
from tests.conftest import Run

CHECKPOINT = Path(__file__).parents[1] / "mha2gqa/reference/checkpoint"


def test_the_checkpoint_is_a_small_bf16_mha_llama() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (8, 8, 32)
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 8_000_000
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 (no dict)


def test_held_out_calibration_and_training_text_are_apart_as_they_say() -> None:
    held_out, calibration, training = (set(files()) for files in (held_out_files, calibration_files, training_files))
    assert len(held_out) == len(HELD_OUT)
    assert len(calibration) >= len(CALIBRATION) - 2, "a Python may have made a module a package"
    assert not held_out & training
    assert calibration <= training


def test_held_out_loss_is_that_of_an_independent_float64_loop() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float64).eval()
    tokens = [tokenizer.bos_token_id, *tokenizer(held_out_files()[0].read_text())["input_ids"]][:1024]
    losses = []
    for block in (tokens[:512], tokens[512:]):
        with torch.inference_mode():
            log_probabilities = model(input_ids=torch.tensor([block])).logits[0].log_softmax(-1)
        losses += [-log_probabilities[place, token].item() for place, token in enumerate(block[1:])]
    assert held_out_loss(CHECKPOINT, 1024) == pytest.approx(math.fsum(losses) / len(losses), abs=1e-5)


def test_the_reference_has_learnt_python() -> None:
    note = json.loads((CHECKPOINT / "training.json").read_text())
    assert note["held_out_loss"] < 2.8
    # A uniform guess costs ln 2048 = 7.6 nats; the first 8,192 tokens are easier than the average.
    assert held_out_loss(CHECKPOINT, 8192) < note["held_out_loss"]


@pytest.mark.slow
def test_the_demo_shows_what_each_way_costs(
    tmp_path: Path, cli: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mha2gqa.verbs.demo.run.CALIBRATION", 8192)
    monkeypatch.setattr("mha2gqa.verbs.demo.run.UPTRAINED", 4)
    measured: dict[bytes, float] = {}

    def loss(path: Path, tokens: int = 2048) -> float:
        """Measure each weights once, whoever asks."""
        weights = hashlib.sha256((path / "model.safetensors").read_bytes()).digest()
        assert tokens == 2048
        if weights not in measured:
            measured[weights] = held_out_loss(path, tokens)
        return measured[weights]

    monkeypatch.setattr("mha2gqa.verbs.demo.run.held_out_loss", loss)
    run = cli("demo", str(tmp_path), "--tokens", "2048")
    assert run.code == 0
    assert run.out.startswith("50% of the KV cache for +"), "what was won comes first"
    assert "held-out loss" in run.out
    assert re.search(r"verdict  different: perplexity \+\d+\.\d %, above the default limit of 1 %: distil it", run.out)
    assert "Different" in (tmp_path / "report.html").read_text()
    original = loss(CHECKPOINT)
    losses = {path.name: loss(path) - original for path in tmp_path.iterdir() if path.is_dir()}
    for groups in (4, 2, 1):
        mean, aligned, refitted = (losses[_name(groups, way)] for way in ("mean", "aligned", "aligned-refit"))
        assert 0 < refitted < aligned < 0.45 * mean, groups
    assert losses[_name(4, "mean-uptrained")] < 0.8 * losses[_name(4, "mean")]
    assert "of the gap closed" in run.out
    assert losses[_name(1, "mean")] < losses[_name(1, "random")]


def _name(groups: int, method: str) -> str:
    return f"mha2gqa-reference-{groups}-{method}"
