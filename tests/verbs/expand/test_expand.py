"""`expand` repeats KV heads without loss: same answers, and `convert` gives back the bytes that were there.

`SOURCES` has one row per way in which a family keeps its KV heads: plain, with biases, with key norms, fused, switched,
in two counts. Byte identity of the round trip is the test that no tensor was missed, reordered or rounded.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mha2gqa.errors import GroupsError
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.expand.options import ExpandOptions
from mha2gqa.verbs.expand.run import expand
from tests.families.cases import TEXT, Case
from tests.families.oracle import greedy, load_strict, logits, read_config, read_tensors
from tests.families.tiny import save_tiny

KV = "num_key_value_heads"
TWO_GEMMA4_COUNTS = {KV: 2, "num_global_key_value_heads": 2, "global_head_dim": 32, "attention_k_eq_v": True}


def source(model_type: str, heads: int, variant: str = "gqa", **overrides: Any) -> Case:
    """A tiny source of 4 query heads and `heads` KV heads."""
    return Case(model_type=model_type, variant=variant, source_heads=heads, overrides=overrides)


SOURCES = (
    source("llama", 2, **{KV: 2}),
    source("llama", 1, "mqa", **{KV: 1}),
    source("qwen2", 2, **{KV: 2}),
    source("olmo2", 2, **{KV: 2}),
    source("cohere", 2, **{KV: 2}, use_qk_norm=True),
    source("stablelm", 2, **{KV: 2}, use_qkv_bias=True, qk_layernorm=True),
    source("stablelm", 1, "mqa", **{KV: 1}, qk_layernorm=True),
    source("phi3", 2, **{KV: 2}),
    source("phi3", 1, "mqa", **{KV: 1}),
    source("dbrx", 2, attn_config={"kv_n_heads": 2}),
    source("falcon", 1, "mqa", multi_query=True),
    source("gpt_bigcode", 1, "mqa", multi_query=True),
    source("doge", 2, **{KV: 2}),
    source("doge", 1, "mqa-bias", **{KV: 1}, attention_bias=True),
    source("gemma4_text", 2, "two-counts", **TWO_GEMMA4_COUNTS),
    source("llava", 2, text_config={KV: 2}),
    source("diffllama", 2, **{KV: 2}),
)
SWITCHED = {"falcon", "gpt_bigcode"}
EXPANSIONS = [
    (case, heads)
    for case in SOURCES
    for heads in (2, 4)
    if heads > case.source_heads and not (heads == 2 and case.model_type in SWITCHED)
] + [(source("mimo_v2_flash", 1, **{KV: 1}), 2)]


def tensor_bytes(directory: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in read_tensors(directory).items()
    }


def convert_back(expanded: Path, groups: int, method: str) -> Path:
    output = expanded.with_name(f"back-{method}")
    convert(ConvertOptions(model=str(expanded), groups=groups, method=method, output=output))
    return output


@pytest.mark.parametrize(("case", "heads"), EXPANSIONS, ids=lambda value: str(value))
def test_expanding_changes_no_answer_and_can_be_undone(case: Case, heads: int, tmp_path: Path) -> None:
    original, expanded = tmp_path / "original", tmp_path / "expanded"
    save_tiny(case.model_type, original, **case.overrides)
    report = expand(ExpandOptions(model=str(original), output=expanded, heads=heads))
    assert report.change.numbers() == {"heads_before": case.source_heads, "heads_after": heads}
    assert report.cache_after == report.cache_before * heads // case.source_heads

    before, after = load_strict(original, case), load_strict(expanded, case)
    torch.testing.assert_close(logits(after, case), logits(before, case), rtol=0, atol=1e-5)
    assert torch.equal(greedy(after, case), greedy(before, case))

    for method in ("mean", "first"):
        back = convert_back(expanded, case.source_heads, method)
        assert tensor_bytes(back) == tensor_bytes(original)
        assert read_config(back) == read_config(original)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["mean", "first"])
def test_the_mean_of_three_equal_heads_is_that_head_to_the_last_bit(
    dtype: torch.dtype, method: str, tmp_path: Path
) -> None:
    original, expanded = tmp_path / "original", tmp_path / "expanded"
    model = save_tiny("llama", original, dtype=dtype, hidden_size=96, num_attention_heads=6, num_key_value_heads=2)
    model.load_state_dict({name: tensor * math.pi for name, tensor in model.state_dict().items()})
    model.save_pretrained(original)  # numbers that use every bit of the dtype
    expand(ExpandOptions(model=str(original), output=expanded))
    assert read_config(expanded)[KV] == 6
    assert tensor_bytes(convert_back(expanded, 2, method)) == tensor_bytes(original)


def test_without_a_number_every_query_head_gets_its_own(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "original", **{KV: 1})
    report = expand(ExpandOptions(model=str(tmp_path / "original"), output=tmp_path / "expanded"))
    assert [fact.after for fact in report.change.facts] == [4]
    assert report.method is None
    weights = read_tensors(tmp_path / "expanded")["model.layers.0.self_attn.k_proj.weight"].unflatten(0, (4, -1))
    assert all(torch.equal(head, weights[0]) for head in weights)


@pytest.mark.parametrize("heads", [None, 4])
def test_a_checkpoint_that_is_expanded_already_is_copied_byte_for_byte(heads: int | None, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "original")
    report = expand(ExpandOptions(model=str(tmp_path / "original"), output=tmp_path / "copy", heads=heads))
    assert report.config_changes == []
    assert {tensor["action"] for tensor in report.tensors} == {"copied"}
    for name in ("config.json", "model.safetensors"):
        assert tensor_bytes(tmp_path / "copy") == tensor_bytes(tmp_path / "original")
        assert (
            name != "config.json"
            or (tmp_path / "copy" / name).read_bytes() == (tmp_path / "original" / name).read_bytes()
        )


@pytest.mark.parametrize(
    ("model_type", "overrides", "heads", "possible"),
    [
        ("llama", {KV: 2}, 3, "one of 2, 4"),
        ("llama", {KV: 2}, 1, "one of 2, 4"),
        ("llama", {KV: 2}, 8, "one of 2, 4"),
        ("llama", {KV: 1}, -2, "one of 1, 2, 4"),
        ("llama", {KV: 1}, 0, "one of 1, 2, 4"),
        ("falcon", {"multi_query": True}, 2, "one of 1, 4"),
        ("mimo_v2_flash", {KV: 1}, 4, "one of 1, 2"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_with_those_that_do(
    model_type: str, overrides: dict[str, Any], heads: int, possible: str, tmp_path: Path
) -> None:
    original, output = tmp_path / "original", tmp_path / "expanded"
    save_tiny(model_type, original, **overrides)
    with pytest.raises(GroupsError, match=rf"{heads}.*{possible}\.$"):
        expand(ExpandOptions(model=str(original), output=output, heads=heads))
    assert list(tmp_path.iterdir()) == [original]


def test_the_nested_count_is_the_one_that_is_rewritten(tmp_path: Path) -> None:
    save_tiny("llava", tmp_path / "original", text_config={KV: 2})
    expand(ExpandOptions(model=str(tmp_path / "original"), output=tmp_path / "expanded"))
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("original", "expanded"))
    assert after[TEXT[0]].pop(TEXT[1]) == 4
    assert before[TEXT[0]].pop(TEXT[1]) == 2
    assert after == before
