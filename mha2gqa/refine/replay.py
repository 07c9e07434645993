"""Runs a model block by block over calibration text, and captures calls of its attention modules.

The model's own forward is run every time, so that masks, positions and whatever else a family hands to its
blocks are the real ones. Blocks that are done are replaced for the moment by their kept output; a pass
stops as soon as it has what it wants. A pass over all layers so costs about as much as one forward, and the
memory of two blocks' outputs. Families whose blocks pass each other more than their outputs (shared keys and
values, for one) are detected: each time that more blocks are done, a few tokens must come out of the model
as they do from a plain forward. If they do not, every pass begins at the start.

Legend: B sequences of a batch, T tokens, D model width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.model.feed import inputs
from mha2gqa.refine.activations import Activations, map_tensors, to_device

_PROBED = 32
"""Tokens by which it is seen whether a pass may begin behind finished blocks."""
_SAME = 1e-3
"""Largest difference between two passes that are the same, as a share of the whole: 16 bits are rounded more finely."""


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
            args, kwargs = map_tensors(lambda one: one.to(dtype) if one.is_floating_point() else one, (args, kwargs))
        return first_tensor(module(*args, **kwargs))

    def given(self, module: nn.Module, inner: str, device: torch.device) -> torch.Tensor:
        """Call a module as far as one within it, and return what that is given."""
        seen: list[torch.Tensor] = []

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])
            raise _Stopped

        handle = module.get_submodule(inner).register_forward_pre_hook(enter)
        try:
            with contextlib.suppress(_Stopped):
                self.run(module, device)
        finally:
            handle.remove()
        return seen[0]


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
        self._batches, self._memory = [*batches_BT, batches_BT[0][:1, :_PROBED]], memory
        self._texts = range(len(batches_BT))
        self._done: list[str] = []
        self._outputs: list[Any] = []
        self._ahead: tuple[str | None, list[Any]] = (None, [])
        """A block that is not finished, and its outputs."""
        self.resumable = True
        """Whether a pass may begin behind the finished blocks; False once that was seen to go wrong."""

    def calls(self, module: str) -> Iterator[Call]:
        """Yield the call of an attention module for each batch; the pass stops there."""
        for number in self._texts:
            yield Call(*self._run(number, before=module)[module])

    def outputs(self, module: str) -> Iterator[torch.Tensor]:
        """Yield an attention module's output `[B, T, D]` for each batch, on the CPU.

        The pass goes on to the end of the module's block, so that `finish` has nothing left to compute: what changes in
        the block afterwards comes too late for it.
        """
        block, ahead = block_of(module) if self.resumable else None, list[Any]()
        for number in self._texts:
            captured = self._run(number, after=(module, block) if block else (module,))
            ahead += [captured[one] for one in captured if one == block]
            yield captured[module]
        if len(ahead) == len(self._texts):
            self._ahead = block, ahead

    def reach(self, module: str) -> None:
        """Finish the blocks before a module's, which no later pass needs to compute again."""
        parent, _, number = (block_of(module) or "").rpartition(".")
        if number and int(number) > 0:
            self.finish(f"{parent}.{int(number) - 1}")

    def finish(self, block: str) -> None:
        """Run to the end of a block and keep its outputs, so that later passes begin behind it."""
        (known, outputs), self._ahead = self._ahead, (None, [])
        if not self.resumable:
            return
        # Only the last finished block's output is kept: nothing else reaches those behind it, or `_end` finds out.
        numbers = range(len(outputs) if known == block else 0, len(self._batches))
        outputs = outputs[: numbers.start] + [self._run(number, after=(block,))[block] for number in numbers]
        parent, _, last = block.rpartition(".")
        plain = self._end()
        self._done, self._outputs = [f"{parent}.{index}" for index in range(int(last) + 1)], outputs
        resumed = self._end()
        self.resumable = _alike(plain, resumed)
        if not self.resumable:
            self._done, self._outputs = [], []

    @torch.no_grad()
    def _end(self) -> torch.Tensor | None:
        """Return what the probe, the last batch, hands to the head, in fp32; None where a later block fails."""
        try:
            with self.skipping(-1):
                return run_to_head(self.model, self._batches[-1]).float()
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a later block does when it misses what a finished one has not handed on
            return None

    def _run(self, number: int, *, before: str = "", after: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run one batch until a module is called, or others have returned; return what they were given or returned."""
        captured: dict[str, Any] = {}

        # Kept at once: what follows may write into it.
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured[before] = self._memory.keep((args, kwargs))
            raise _Stopped

        def leave(_: nn.Module, _args: tuple[Any, ...], output: Any, *, path: str) -> None:
            # Of blocks whatever they return, of others what is asked for: attention weights may lie beside it.
            captured[path] = self._memory.keep(output if path == block_of(path) else first_tensor(output))
            if path == after[-1]:
                raise _Stopped

        modules = [self.model.get_submodule(path) for path in after]
        handles = [
            one.register_forward_hook(partial(leave, path=path)) for one, path in zip(modules, after, strict=True)
        ]
        if before:
            handles.append(self.model.get_submodule(before).register_forward_pre_hook(enter, with_kwargs=True))
        try:
            with torch.no_grad(), self.skipping(number), contextlib.suppress(_Stopped):
                self.model(**inputs(self.model, self._batches[number]))
        finally:
            for handle in handles:
                handle.remove()
        wanted = before or after[0]
        if wanted not in captured:
            raise never_called(wanted)
        return captured

    @contextlib.contextmanager
    def skipping(self, number: int, model: PreTrainedModel | None = None) -> Iterator[None]:
        """Let finished blocks return their kept output of a batch, by number, instead of computing it.

        Args:
            number: The batch that is read meanwhile.
            model: Whose blocks; another one that is the same as far as these go. Default: this one's.
        """
        if not self._done:
            yield
            return
        model = model or self.model
        output = to_device(self._outputs[number], model.device)
        # All return the output of the last: the others' is read by the next finished block alone, which ignores it. An
        # attribute of the instance hides the class's forward, and hooks of the block still see it called.
        blocks = [model.get_submodule(block) for block in self._done]
        for block in blocks:
            block.forward = lambda *_args, **_kwargs: output
        try:
            yield
        finally:
            for block in blocks:
                del block.forward


class _Stopped(Exception):
    """Ends a pass that has what it wants."""


def _alike(plain: torch.Tensor | None, resumed: torch.Tensor | None) -> bool:
    """Return whether two passes are the same."""
    if plain is None or resumed is None:
        return False
    return bool(torch.linalg.vector_norm(resumed - plain) <= _SAME * torch.linalg.vector_norm(plain))


def run_to_head(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Run a model up to its head, and return what that would be given; without a head, what the model returns.

    Logits of a large vocabulary take as long as some blocks, and more memory than all else.
    """
    seen: list[torch.Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Stopped

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(enter) if isinstance(head, nn.Module) else None
    try:
        with contextlib.suppress(_Stopped):
            seen.append(first_tensor(tuple(model(**inputs(model, ids_BT)).values())))
    finally:
        if handle is not None:
            handle.remove()
    return seen[0]


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
