"""Models load strictly with the class that wrote them, and generate what they say rather than what settings ask."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from mha2gqa.errors import CheckpointError, DeviceError, TextError
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.devices import Placement, placement
from mha2gqa.model.load import context_length, load_model, load_tokenizer
from tests.families.tiny import save_tiny, tiny_config


@pytest.mark.parametrize("model_type", ["llama", "phi3", "falcon", "gemma3", "jamba", "t5gemma", "eurobert"])
def test_the_class_that_wrote_a_checkpoint_loads_it(tmp_path: Path, model_type: str) -> None:
    written = save_tiny(model_type, tmp_path)
    model = load_model(tmp_path)
    assert type(model) is type(written)
    assert not model.training
    for name, tensor in written.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("model_type", "module"),
    [
        ("llama", "model.layers.1.self_attn"),
        ("phi3", "model.layers.1.self_attn"),
        ("falcon", "transformer.h.1.self_attention"),
        ("gemma3", "model.language_model.layers.1.self_attn"),
        ("t5gemma", "model.decoder.layers.1.cross_attn"),
        ("eurobert", "model.layers.1.self_attn"),
    ],
)
def test_attention_modules_are_named_as_in_the_loaded_model(tmp_path: Path, model_type: str, module: str) -> None:
    save_tiny(model_type, tmp_path)
    modules = Architecture(json.loads((tmp_path / "config.json").read_text())).attention_modules
    assert module in modules
    loaded = dict(load_model(tmp_path).named_modules())
    assert [name for name in loaded if name in modules] == modules


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "mismatched model.norm.weight"),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(
    tiny: Callable[..., Path], damage: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    file = tiny() / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load_model(file.parent)


def test_a_cpu_runs_16_bit_weights_in_fp32_unless_told_otherwise(tiny: Callable[..., Path]) -> None:
    source = tiny(dtype=torch.bfloat16)
    assert load_model(source, device="cpu").dtype == torch.float32
    assert load_model(source, device="cpu", dtype="float64").dtype == torch.float64


def test_a_model_goes_to_the_accelerator_when_it_fits_and_is_divided_when_not(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(dtype=torch.bfloat16)
    size = sum(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.get_memory_info", lambda device: (2 * size, 100 * size))
    assert placement(source) == Placement("cuda", None)
    assert placement(source, models=2) == Placement("cuda", None)
    assert placement(source, models=3) == Placement("auto", None)
    assert placement(source, device="cuda:1", models=3) == Placement("cuda:1", None)
    assert placement(source, dtype="float16") == Placement("cuda", torch.float16)
    assert placement(source, device="cpu") == Placement("cpu", torch.float32)


def test_a_device_that_is_not_there_is_refused(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"no device 'cuda:1' here\. Expected one of auto, cpu"):
        placement(tiny(), device="cuda:1")
    assert placement(tiny("other")) == Placement("cpu", torch.float32)


def test_generation_settings_of_a_checkpoint_are_set_aside(tiny: Callable[..., Path]) -> None:
    source = tiny()
    ids = torch.arange(3, 11)[None]
    greedy = load_model(source).generate(ids, max_new_tokens=8)
    assert greedy.shape == (1, 16)
    GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=3.0,
        eos_token_id=int(greedy[0, 8]),
        suppress_tokens=[int(greedy[0, 9])],
    ).save_pretrained(source)
    assert torch.equal(load_model(source).generate(ids, max_new_tokens=8), greedy)


def test_a_context_must_fit_the_model() -> None:
    config = tiny_config("llama", max_position_embeddings=512)
    assert context_length(config, None) == 512
    assert context_length(config, 64) == 64
    assert context_length(tiny_config("llama", max_position_embeddings=131072), None) == 2048
    for wanted in (513, 1):
        with pytest.raises(TextError, match=rf"--context {wanted} does not fit the model\. Expected 2 to 512 tokens"):
            context_length(config, wanted)


def test_a_missing_or_broken_tokenizer_is_refused(tiny: Callable[..., Path]) -> None:
    source = tiny()
    with pytest.raises(TextError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(TextError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(source)
