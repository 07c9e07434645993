"""One layer alone: against plain torch for Llama, and all of them together against the conversion itself, by family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from mha2gqa.model.original import Original
from mha2gqa.verbs.sweep.measuring import Yardstick, restore, single_layers
from mha2gqa.verbs.verify.options import VerifyOptions
from tests.verbs.verify.subjects import converted, save_source, save_text

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "falcon": {},
    "gpt_bigcode": {},
    "gemma3_text": {},
    "olmo2": {},
    "gemma4_text": {},
    "zamba2": {},
}
"""Plain, biases, key norms, fused, interleaved, a switch, windows, norms over all heads, two counts, shared weights."""


def yardstick_of(source: Path, text: Path, dtype: str = "float64") -> Yardstick:
    options = VerifyOptions(data=(str(text),), tokens=96, context=24, dtype=dtype, device="cpu")
    return Yardstick(Original.at(source), options)


def expanded(yardstick: Yardstick, source: Path, output: Path) -> PreTrainedModel:
    restore(output, Original.at(source).architecture, output.with_name("restored"))
    return yardstick.load(output.with_name("restored"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["mean", "aligned"])
def test_all_layers_together_are_the_conversion(family: str, method: str, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", family, **FAMILIES[family])
    yardstick = yardstick_of(source, save_text(tmp_path / "text.txt"))
    output = converted(source, tmp_path / "converted", 1, method=method)
    whole = yardstick.measure(yardstick.load(output), lambda size, total: None)
    model = expanded(yardstick, source, output)
    assert {name: tuple(one.shape) for name, one in model.named_parameters()} == {
        name: tuple(one.shape) for name, one in yardstick.original.named_parameters()
    }
    modules = Original.at(source).architecture.attention_modules
    singles = dict(single_layers(yardstick, yardstick.original, model, modules, lambda size, total: None))
    assert list(singles) == modules
    together = yardstick.measure(model, lambda size, total: None)
    assert together.loss.converted == pytest.approx(whole.loss.converted, abs=1e-6)
    assert together.kl == pytest.approx(whole.kl, abs=1e-6)
    assert whole.kl > 1e-4
    assert all(one.kl > 1e-6 for one in singles.values())
    shares = len({id(next(model.get_submodule(name).parameters())) for name in modules}) == 1
    assert (len({one.kl for one in singles.values()} | {whole.kl}) == 1) == shares


def test_one_layer_is_what_plain_torch_makes_of_it(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    yardstick = yardstick_of(source, save_text(tmp_path / "text.txt"))
    model = expanded(yardstick, source, converted(source, tmp_path / "converted", 2))
    modules = Original.at(source).architecture.attention_modules
    found = dict(single_layers(yardstick, yardstick.original, model, modules, lambda size, total: None))
    for number, module in enumerate(modules):
        plain = LlamaForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
        attention = plain.model.layers[number].self_attn
        for projection in (attention.k_proj, attention.v_proj):
            heads = projection.weight.data.view(2, 2, 16, -1)
            projection.weight.data = heads.mean(1, keepdim=True).expand_as(heads).reshape(64, -1).float().double()
        with torch.inference_mode():
            ids = yardstick._ids_NT
            logits = plain(ids).logits[:, :-1].log_softmax(-1)
            loss = -logits.gather(-1, ids[:, 1:, None]).mean().item()
        assert found[module].loss.converted == pytest.approx(loss, abs=1e-9)


def test_the_original_is_left_as_it_was(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    yardstick = yardstick_of(source, save_text(tmp_path / "text.txt"))
    before = {name: one.clone() for name, one in yardstick.original.state_dict().items()}
    model = expanded(yardstick, source, converted(source, tmp_path / "converted", 2))
    modules = Original.at(source).architecture.attention_modules
    list(single_layers(yardstick, yardstick.original, model, modules, lambda size, total: None))
    after = yardstick.original.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    whole = yardstick.measure(yardstick.original, lambda size, total: None)
    assert (whole.loss.difference, whole.kl, whole.top1) == (0.0, 0.0, 1.0)
