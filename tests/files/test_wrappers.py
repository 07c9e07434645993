"""Names of wrapped models: what comes off, what does not, and that a checkpoint with them is converted as any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mha2gqa.errors import CheckpointError
from mha2gqa.files.reader import read_checkpoint
from mha2gqa.files.wrappers import shortened, unwrapped

PLAIN = ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight")


def front(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def inside(wrapper: str) -> Callable[[str], str]:
    return lambda name: name.replace("layers.0.", f"layers.0.{wrapper}.")


WRAPPERS: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "compiled": (front("_orig_mod."), ("_orig_mod.",)),
    "distributed": (front("module."), ("module.",)),
    "both": (front("module._orig_mod."), ("_orig_mod.", "module.")),
    "both, the other way": (front("_orig_mod.module."), ("_orig_mod.", "module.")),
    "twice distributed": (front("module.module."), ("module.", "module.")),
    "merged adapter": (front("base_model.model."), ("base_model.model.",)),
    "lightning": (front("_forward_module."), ("_forward_module.",)),
    "each layer compiled": (inside("_orig_mod"), ("_orig_mod.",)),
    "each layer sharded": (inside("_fsdp_wrapped_module"), ("_fsdp_wrapped_module.",)),
    "sharded and checkpointed": (
        lambda name: "_fsdp_wrapped_module." + inside("_fsdp_wrapped_module._checkpoint_wrapped_module")(name),
        ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
    ),
    "nothing": (front(""), ()),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_names_without_wrappers(kind: str) -> None:
    wrap, prefixes = WRAPPERS[kind]
    found = unwrapped([wrap(name) for name in PLAIN])
    assert (found.names, found.prefixes) == (PLAIN, prefixes)


@pytest.mark.parametrize(
    "names",
    [
        ("module.a", "b"),
        ("module.a", "modules.b"),
        ("module",),
        ("base_model.a", "base_model.b"),
        ("model.orig_mod.a",),
        ("transformer.h.0.module.weight", "lm_head.weight"),
        (),
    ],
)
def test_names_that_only_look_so(names: tuple[str, ...]) -> None:
    assert unwrapped(names) == unwrapped(unwrapped(names).names)
    assert (unwrapped(names).names, unwrapped(names).prefixes) == (names, ())


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(CheckpointError, match=r"'model\.a' without the prefixes of wrappers \(_orig_mod\.\)"):
        unwrapped(["model.a", "_orig_mod.model.a"])


@pytest.mark.parametrize("part", ["q_proj.lora_A.default", "q_proj.base_layer", "q_proj.lora_magnitude_vector"])
def test_an_adapter_is_none(part: str) -> None:
    with pytest.raises(CheckpointError, match=r"is an adapter's.*merge_and_unload"):
        unwrapped([f"base_model.model.model.layers.0.{part}.weight", "base_model.model.lm_head.weight"])


def test_prefixes_that_every_name_has() -> None:
    names = [f"net.model.{name}" for name in PLAIN[:3]]
    found = dict(shortened(names))
    assert list(found) == ["net.", "net.model.", "net.model.model."]
    assert found["net.model."] == PLAIN[:3]
    assert list(shortened(PLAIN)) == []
    assert list(shortened([])) == []
    assert list(shortened(["a.b"])) == [("a.", ("b",))]


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_checkpoint_is_converted(
    tiny: Callable[..., Path], cli: Callable[..., Any], tensors: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    source = tiny()
    cli("convert", source, "-g", 2, "-o", "expected")
    wrap, prefixes = WRAPPERS[kind]
    state = load_file(source / "model.safetensors")
    save_file({wrap(name): tensor for name, tensor in state.items()}, source / "model.safetensors", {"format": "pt"})
    assert read_checkpoint(source).unwrapped == prefixes
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    ours, expected = tensors(tmp_path / "out"), tensors(tmp_path / "expected")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
