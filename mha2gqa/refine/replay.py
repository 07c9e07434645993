"""Runs a model block by block over calibration text, and captures calls of its attention modules.

The model's own forward is run every time, so that masks, positions and whatever else a family hands to its
blocks are the real ones. Blocks that are done are replaced for the moment by their kept output; a pass
stops as soon as it has what it wants. A pass over all layers so costs about as much as one forward, and the
memory of one block's outputs. Families whose blocks pass each other more than their outputs (shared keys and
values, for one) are detected: each time that more blocks are done, the first batch must come out of the model
as it does from a plain forward. If it does not, every pass begins at the start.

Legend: B sequences of a batch, T tokens, D model width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.model.feed import inputs
from mha2gqa.refine.activations import Activations, map_tensors, to_device

_SAME = 1e-3
"""Largest difference between two passes that are the same, as a share of the whole: 16 bits are rounded more finely."""


@dataclass(frozen=True)
class Call:
    """One call of an attention module, on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def masked_as(self, other: "Call") -> "Call":
        """Return the call with the masks of another, which was made where attention is computed in another way."""

        def chosen(own: Any, theirs: Any) -> Any:
            # None may be a mask as well; no other argument that a pass without a cache gives is either.
            return theirs if own is None or (isinstance(own, torch.Tensor) and own.ndim == 4) else own

        args = tuple(map(chosen, self.args, other.args))
        kwargs = {name: chosen(value, other.kwargs.get(name)) for name, value in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def run(self, module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Call a module with these arguments.

        Returns:
            Its first output, `[B, T, D]`.
        """
        args, kwargs = to_device((self.args, self.kwargs), device)
        if dtype is not None:
            args, kwargs = map_tensors(lambda one: one.to(dtype) if one.is_floating_point() else one, (args, kwargs))
        return first_tensor(module(*args, **kwargs))


Example: TypeAlias = tuple[Call, torch.Tensor]
"""A call, and the output `[B, T, D]` that is wanted of it."""


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
        self.resumable = True
        """Whether a pass may begin behind the finished blocks; False once that was seen to go wrong."""

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
        if not self.resumable:
            return
        # Only the last finished block's output is kept: nothing else reaches those behind it, or `_resumes` finds out.
        outputs = [self._memory.keep(self._run(number, after=block)["output"]) for number in range(len(self._batches))]
        parent, _, last = block.rpartition(".")
        self._done, self._outputs = [f"{parent}.{index}" for index in range(int(last) + 1)], outputs
        self.resumable = self._resumes()
        if not self.resumable:
            self._done, self._outputs = [], []

    @torch.no_grad()
    def _resumes(self) -> bool:
        """Return whether the first batch leaves the model as it does in a plain forward."""
        plain = self._end(0)
        try:
            with self._skipping(0):
                resumed = self._end(0)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a later block does when it misses what a finished one has not handed on
            return False
        return bool(torch.linalg.vector_norm(resumed - plain) <= _SAME * torch.linalg.vector_norm(plain))

    def _end(self, number: int) -> torch.Tensor:
        """Return what a batch's pass hands to the head, in fp32; without a head, what the model returns."""
        head = self.model.get_output_embeddings()
        seen: list[torch.Tensor] = []

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])
            raise _Stopped

        # In front of the head: logits of a large vocabulary would take longer than the blocks that are to be saved.
        handle = head.register_forward_pre_hook(enter) if isinstance(head, nn.Module) else None
        try:
            with contextlib.suppress(_Stopped):
                seen.append(first_tensor(tuple(self.model(**inputs(self.model, self._batches[number])).values())))
        finally:
            if handle is not None:
                handle.remove()
        return seen[0].float()

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
                self.model(**inputs(self.model, self._batches[number]))
        finally:
            handle.remove()
        if not captured:
            raise never_called(before or after)
        return captured

    @contextlib.contextmanager
    def _skipping(self, number: int) -> Iterator[None]:
        """Let finished blocks return their kept output instead of computing it."""
        if not self._done:
            yield
            return
        output = to_device(self._outputs[number], self.model.device)
        # All return the output of the last: the others' is read by the next finished block alone, which ignores it. An
        # attribute of the instance hides the class's forward, and hooks of the block still see it called.
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


def never_called(module: str) -> CalibrationError:
    """Return the refusal of a module that takes no part when the model reads text: of it, text tells nothing."""
    return CalibrationError(
        f"The model reads text without ever calling {module}",
        expected="attention layers that each take part",
        remedy="Convert it without --refine: --method aligned --data none",
    )


def block_of(module: str) -> str | None:
    """Return the block that an attention module lies in: `model.layers.3` of `model.layers.3.self_attn`."""
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def first_tensor(output: Any) -> torch.Tensor:
    """Return the first tensor of a module's output."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found
