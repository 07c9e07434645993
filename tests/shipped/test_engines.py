"""Shipped classes as engines use them: with attention of the engine's own, its way of loading, and its transformers."""

import re
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mha2gqa import shipped
from tests.families.tiny import tiny_config

FILES = sorted(Path(shipped.__file__).parent.glob("modeling_*.py"))


def flat(*arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """Return the outputs of all tokens behind one another, `[B·T, H·E]`, as vLLM's attention does."""
    output, _ = sdpa_attention_forward(*arguments, **options)
    return output.flatten(0, 1).flatten(1), None


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    AttentionInterface.register("flat", flat)
    AttentionMaskInterface.register("flat", sdpa_mask)


def build(model_type: str, head: str) -> Any:
    """A tiny model of a shipped class, with half the KV heads."""
    shipped.register(f"{model_type}_gqa")
    config = tiny_config(model_type).to_dict()
    heads = config.get("num_attention_heads") or config.get("n_head")
    config |= {"model_type": f"{model_type}_gqa", "num_key_value_heads": heads // 2}
    model_class: Any = shipped.find_class(f"{model_type}_gqa", head)
    torch.manual_seed(0)
    return model_class(model_class.config_class.from_dict(config)).eval()


@pytest.mark.parametrize(
    ("model_type", "head"),
    [("opt", "OPTGQAForCausalLM"), ("gpt2", "GPT2GQALMHeadModel"), ("bert", "BertGQAForMaskedLM")],
)
@torch.no_grad()
def test_an_attention_that_gives_all_tokens_in_a_row(model_type: str, head: str) -> None:
    model = build(model_type, head)
    ids = torch.arange(2, 8).view(1, 6)
    expected = model(input_ids=ids).logits
    model.set_attn_implementation("flat")
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["GPT2GQAModel", "GPT2GQALMHeadModel", "GPT2GQAForSequenceClassification"])
def test_no_weight_of_gpt2_is_one_that_a_loader_leaves_out(head: str) -> None:
    model = build("gpt2", head)
    left_out = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected]
    assert any(pattern.search("transformer.h.0.attn.bias") for pattern in left_out)
    assert not [name for name in model.state_dict() if any(pattern.search(name) for pattern in left_out)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("version", ["4.57.1", "4.40.0.dev0"])
def test_an_older_transformers_is_told_so(file: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old: Any = types.ModuleType("transformers")
    old.__version__ = version
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=f"needs transformers 5, and this is {version}"):
        runpy.run_path(str(file))
