"""Calls captured block by block against those of a plain forward with hooks, for families that differ in structure."""

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from mha2gqa.errors import CalibrationError
from mha2gqa.model.feed import inputs
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.replay import Call, Replay, first_tensor
from tests.refine.pairs import make_pair, token_batches

CPU = torch.device("cpu")
FAMILIES = [
    ("llama", {}, True),
    ("gemma2", {}, True),
    ("jamba", {}, True),
    ("nemotron_h", {}, True),
    ("t5gemma", {}, True),
    ("gemma3n_text", {}, True),
    ("gemma3n_text", {"num_kv_shared_layers": 2}, False),
    ("gemma4_text", {"num_kv_shared_layers": 2}, False),
]
"""Model type, what is changed in its config, and whether a pass may begin behind finished blocks."""


def plain(model: nn.Module, module: str, batch: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The arguments and the output of a module in an ordinary forward."""
    seen: list[Any] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs)))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(first_tensor(output).clone())

    attention = model.get_submodule(module)
    handles = [attention.register_forward_pre_hook(before, with_kwargs=True), attention.register_forward_hook(after)]
    with torch.no_grad():
        model(**inputs(model, batch))
    for handle in handles:
        handle.remove()
    return seen[0], seen[1]


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("model_type", "overrides", "resumable"), FAMILIES, ids=lambda value: str(value)[:16])
def test_calls_are_those_of_a_plain_forward(
    model_type: str, overrides: dict[str, Any], resumable: bool, tmp_path: Path
) -> None:
    pair, batches = make_pair(model_type, **overrides), token_batches(2)
    replay = Replay(pair.original, batches, Activations(10**9, tmp_path))
    for layer in pair.layers:
        replay.reach(layer.module)
        attention = pair.original.get_submodule(layer.module)
        calls, outputs = list(replay.calls(layer.module)), list(replay.outputs(layer.module))
        for batch, call, output in zip(batches, calls, outputs, strict=True):
            arguments, expected = plain(pair.original, layer.module, batch)
            for found, wanted in zip(tensors((call.args, call.kwargs)), tensors(arguments), strict=True):
                assert torch.equal(found, wanted)
            assert torch.equal(output, expected)
            torch.testing.assert_close(call.run(attention, CPU), expected, rtol=0, atol=1e-6)
    assert replay.resumable == resumable


def test_finished_blocks_are_not_computed_again(tmp_path: Path) -> None:
    pair, batches = make_pair("llama"), token_batches(3)
    replay, calls = Replay(pair.original, batches, Activations(10**9, tmp_path)), []
    replay.finish("model.layers.0")
    pair.original.get_submodule("model.layers.0.self_attn").register_forward_hook(lambda *_: calls.append(0))
    assert len(list(replay.calls("model.layers.1.self_attn"))) == 3
    assert calls == []
    with torch.no_grad():
        pair.original(**inputs(pair.original, batches[0]))
    assert calls == [0], "outside of a pass the block is itself again"


def test_a_pass_follows_a_change_of_the_blocks_that_are_not_finished(tmp_path: Path) -> None:
    pair, batches = make_pair("llama"), token_batches(1)
    replay = Replay(pair.original, batches, Activations(10**9, tmp_path))
    replay.finish("model.layers.0")
    pair.original.get_parameter("model.layers.1.self_attn.o_proj.weight").data.mul_(2)
    (output,) = replay.outputs("model.layers.1.self_attn")
    assert torch.equal(output, plain(pair.original, "model.layers.1.self_attn", batches[0])[1])


def test_a_module_that_writes_into_a_shared_dict_can_be_called_again(tmp_path: Path) -> None:
    pair = make_pair("gemma4_text", num_kv_shared_layers=2)
    replay = Replay(pair.original, token_batches(1), Activations(10**9, tmp_path))
    (call,) = replay.calls(pair.layers[0].module)
    shared = [value for value in call.kwargs.values() if isinstance(value, UserDict)]
    attention = pair.original.get_submodule(pair.layers[0].module)
    first, second = (call.run(attention, CPU) for _ in range(2))
    assert torch.equal(first, second)
    assert [dict(one) for one in shared] == [{}], "the call is as it was captured"


def test_a_call_in_another_dtype_changes_no_integers() -> None:
    class Kinds(nn.Module):
        def forward(self, states: torch.Tensor, *, positions: torch.Tensor, mask: None) -> torch.Tensor:
            assert (states.dtype, positions.dtype, mask) == (torch.float64, torch.int64, None)
            return states

    call = Call((torch.ones(2),), {"positions": torch.arange(2), "mask": None})
    assert call.run(Kinds(), CPU, torch.float64).dtype == torch.float64


def test_a_module_that_takes_no_part_is_refused(tmp_path: Path) -> None:
    pair, batches = make_pair("llama"), token_batches(2)
    pair.original.add_module("unused", nn.Linear(2, 2))
    with pytest.raises(CalibrationError, match="without ever calling unused"):
        list(Replay(pair.original, batches, Activations(10**9, tmp_path)).calls("unused"))
