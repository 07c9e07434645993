"""Runs a model block by block over calibration text, and captures calls of its attention modules.

The model's own forward is run every time, so that masks, positions and whatever else a family hands to its
blocks are the real ones. Blocks that are done are replaced for the moment by their kept output; a pass
stops as soon as it has what it wants. A pass over all layers so costs about as much as one forward, and the
memory of one block's outputs. Families whose blocks pass each other more than their outputs are detected by
comparison with a plain forward, and run from the start every time.

Legend: B sequences of a batch, T tokens, D model width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.calibration.activations import Activations, to_device


@dataclass(frozen=True)
class Call:
    """One call of an attention module, on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Call a module with these arguments.

        Returns:
            Its first output, `[B, T, D]`.
        """
        args, kwargs = to_device((self.args, self.kwargs), device)
        if dtype is not None:
            args, kwargs = _cast((args, kwargs), dtype)
        return first_tensor(module(*args, **kwargs))


class Replay:
    """One model's way through the calibration text.

    Args:
        model: The model.
        batches_BT: Token ids, a batch each.
        memory: Where outputs of blocks are kept.
    """

    def __init__(self, model: PreTrainedModel, batches_BT: Sequence[torch.Tensor], memory: Activations) -> None:
        self.model = model
        self._batches, self._memory = batches_BT, memory
        self._done: list[str] = []
        self._outputs: list[Any] = []

    def calls(self, module: str) -> Iterator[Call]:
        """Yield the call of an attention module for each batch; the pass stops there."""
        for number in range(len(self._batches)):
            captured = self._run(number, before=module)
            yield Call(*self._memory.keep(captured["call"]))

    def outputs(self, module: str) -> Iterator[torch.Tensor]:
        """Yield an attention module's output `[B, T, D]` for each batch, on the CPU."""
        for number in range(len(self._batches)):
            captured = self._run(number, after=module)
            yield self._memory.keep(first_tensor(captured["output"]))

    def finish(self, block: str) -> None:
        """Run to the end of a block and keep its outputs, so that later passes begin behind it."""
        if self._outputs is None:
            return
        outputs = [self._memory.keep(self._run(number, after=block)["output"]) for number in range(len(self._batches))]
        parent, _, last = block.rpartition(".")
        self._done, self._outputs = [f"{parent}.{index}" for index in range(int(last) + 1)], outputs

    def logits(self, number: int) -> torch.Tensor:
        """Return the logits of a batch, by a pass that begins behind the finished blocks."""
        with self._skipping(number):
            logits: torch.Tensor = self.model(**self._inputs(number)).logits
        return logits

    def _run(self, number: int, *, before: str = "", after: str = "") -> dict[str, Any]:
        captured: dict[str, Any] = {}

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["call"] = (args, kwargs)
            raise _Stopped

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured["output"] = output
            raise _Stopped

        module = self.model.get_submodule(before or after)
        handle = (
            module.register_forward_pre_hook(enter, with_kwargs=True) if before else module.register_forward_hook(leave)
        )
        try:
            with torch.no_grad(), self._skipping(number), contextlib.suppress(_Stopped):
                self.model(**self._inputs(number))
        finally:
            handle.remove()
        return captured

    def _inputs(self, number: int) -> dict[str, Any]:
        return model_inputs(self.model, self._batches[number])

    @contextlib.contextmanager
    def _skipping(self, number: int) -> Iterator[None]:
        """Let finished blocks return their kept output instead of computing it."""
        if not self._done:
            yield
            return
        output = to_device(self._outputs[number], self.model.device)
        blocks = [self.model.get_submodule(block) for block in self._done]
        for block in blocks:
            block.forward = lambda *_args, **_kwargs: output
        try:
            yield
        finally:
            for block in blocks:
                del block.forward


class _Stopped(Exception):
    """Ends a pass that has what it wants."""


def model_inputs(model: PreTrainedModel, batch_BT: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of a forward pass over token ids: an encoder-decoder reads the same on both sides."""
    ids = batch_BT.to(model.device)
    both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return {"input_ids": ids, "use_cache": False, **both}


def block_of(module: str) -> str | None:
    """Return the block that an attention module lies in: `model.layers.3` of `model.layers.3.self_attn`."""
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def first_tensor(output: Any) -> torch.Tensor:
    """Return the first tensor of a module's output."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    from torch.utils import _pytree as pytree

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(torch.Tensor, cast, tree)
