"""Every native host: what is written is another class, loads strictly, and answers like the original with pooled K/V.

The oracle is the original's own class (`sources.py`). Everything that transformers can do with the result is tried:
both kinds of attention, left padding, the cache, generation, saving it again.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mha2gqa import ConvertOptions, convert
from tests.hosts.sources import SOURCES, VOCABULARY, H, build, pooled

IDS = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-5
CASES = [(name, groups) for name, source in SOURCES.items() for groups in (H, *source.groups)]


def load(directory: Path, attention: str = "sdpa") -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", attn_implementation=attention, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor = IDS, **options: object) -> torch.Tensor:
    return model(ids, **options).logits


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / max(1.0, other.abs().max().item())).item()


@torch.no_grad()
def cache_bytes(model: PreTrainedModel) -> int:
    layers = model(IDS, use_cache=True).past_key_values.layers
    return sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in (layer.keys, layer.values))


def generate(model: PreTrainedModel, **options: object) -> torch.Tensor:
    return model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **options)


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_the_host_answers_like_the_original_with_pooled_heads(name: str, groups: int, tmp_path: Path) -> None:
    source = SOURCES[name]
    original = build(source)
    original.save_pretrained(tmp_path / "source", max_shard_size="100KB")
    report = convert(ConvertOptions(model=str(tmp_path / "source"), groups=groups, output=tmp_path / "out"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == report.model_type == source.host
    assert report.rehosted_from == source.config.model_type
    wanted = pooled(source, original, groups)
    assert error(logits(wanted), logits(original)) > 1e-2 or groups == H
    result = load(tmp_path / "out")
    assert error(logits(result), logits(wanted)) <= TOLERANCE
    assert error(logits(load(tmp_path / "out", "eager")), logits(wanted)) <= TOLERANCE
    assert cache_bytes(result) * H == cache_bytes(original) * groups
    assert torch.equal(generate(result, use_cache=True), generate(result, use_cache=False))
    assert torch.equal(generate(result, use_cache=True), generate(wanted, use_cache=True))
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    assert torch.equal(generate(result, attention_mask=mask), generate(wanted, attention_mask=mask))
    if source.padded:
        padded = (logits(model, attention_mask=mask)[:, 4:] for model in (result, wanted))
        assert error(*padded) <= TOLERANCE
    result.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), logits(result))
