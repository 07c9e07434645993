"""Runs models of every kind on blocks of tokens: what they are fed, and their logits a few positions at a time.

A decoder reads the tokens, an encoder-decoder reads them in both halves, a masked model reads them unmasked; which
kind a model is of says `kind.py`. `Body` runs everything below the output projection once and then gives the logits of
any range of positions through the class's own forward, scaling and soft-capping included, so that the logits of a
whole block are never in memory.

Legend: B blocks of a batch, T tokens of a block, C positions of a chunk, V vocabulary.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.model.kind import kind_of

Result = TypeVar("Result")
Logits: TypeAlias = Callable[[slice], torch.Tensor]
"""Gives the logits `[B, C, V]` of a range of positions."""

_PROBED = 12
"""Positions on which chunked logits are held against whole ones before they are relied on."""
_REORDERED = 1e-4
"""What the order of the sums in an output projection changes, as a fraction of the largest logit."""


def inputs(model: PreTrainedModel, ids_BT: torch.Tensor, encoder_ids_BT: torch.Tensor | None = None) -> dict[str, Any]:
    """Return the keyword arguments of a forward pass on blocks of tokens, which keeps no cache.

    Args:
        model: Who reads them.
        ids_BT: What a decoder, or the only half, reads.
        encoder_ids_BT: What the encoder of an encoder-decoder reads; None is the same.
    """
    fed = {"input_ids": ids_BT.to(model.device), "use_cache": False}
    if not kind_of(model).has_encoder:
        return fed
    encoded_BT = ids_BT if encoder_ids_BT is None else encoder_ids_BT
    return fed | {"input_ids": encoded_BT.to(model.device), "decoder_input_ids": fed["input_ids"]}


def attempt(run: Callable[[], Result]) -> Result | str:
    """Return what `run` returns, or why it failed: a class may not be able to do what others can."""
    try:
        return run()
    except Exception as error:  # reported by the caller; what classes raise is of every kind
        reason = " ".join(str(error).split())[:160]
        return f"{type(error).__name__}: {reason}"


class Body:
    """A model whose output projection is applied to a few positions at a time."""

    def __init__(self, model: PreTrainedModel, probe_BT: torch.Tensor) -> None:
        """Find out on `probe_BT`, one block, whether the class allows it; else every call runs the whole model."""
        self.model = model
        self._inner: Any = model.base_model if model.base_model is not model else None
        if self._inner is not None and not self._is_exact(probe_BT[:, :_PROBED]):
            self._inner = None

    @property
    def is_chunked(self) -> bool:
        """Whether logits are made a few positions at a time."""
        return self._inner is not None

    def read(self, ids_BT: torch.Tensor) -> Logits:
        """Run the model on a batch, and return what gives its logits."""
        return self.answer(inputs(self.model, ids_BT))

    def answer(self, given: Mapping[str, Any]) -> Logits:
        """Run the model as `read` does, on the keyword arguments of its forward."""
        fed = dict(given) | {"use_cache": False}
        if self._inner is None:
            logits_BTV = self._logits(fed)
            return lambda positions: logits_BTV[:, positions]
        output = self._run_inner(fed)
        return lambda positions: self._logits(fed, replaced=_cut(output, positions))

    def _logits(self, fed: dict[str, Any], replaced: Any = None) -> torch.Tensor:
        if replaced is None:
            logits: torch.Tensor = self.model(**fed).logits
            return logits
        own = self._inner.__dict__.get("forward")
        self._inner.forward = lambda *arguments, **options: replaced
        try:
            logits = self.model(**fed).logits
        finally:
            if own is None:
                del self._inner.forward
            else:
                self._inner.forward = own
        return logits

    def _run_inner(self, fed: dict[str, Any]) -> Any:
        """Run the whole model, but let its output projection see one position, and return what the body gave."""
        seen: list[Any] = []

        def keep(module: nn.Module, arguments: Any, output: Any) -> Any:
            seen.append(output)
            return _cut(output, slice(0, 1))

        handle = self._inner.register_forward_hook(keep)
        try:
            self.model(**fed)
        finally:
            handle.remove()
        return seen[0]

    def _is_exact(self, probe_BT: torch.Tensor) -> bool:
        fed = inputs(self.model, probe_BT)
        whole_BTV = self._logits(fed)
        half = slice(probe_BT.shape[1] // 2, None)
        chunk_BCV = attempt(lambda: self._logits(fed, replaced=_cut(self._run_inner(fed), half)))
        if isinstance(chunk_BCV, str) or chunk_BCV.shape != whole_BTV[:, half].shape:
            return False
        # Sums of another number of rows may be taken in another order; anything else is far larger.
        tolerance = max(4 * torch.finfo(whole_BTV.dtype).eps, _REORDERED) * whole_BTV[:, half].abs().max().item()
        return (chunk_BCV - whole_BTV[:, half]).abs().max().item() <= tolerance


def _cut(output: Any, positions: slice) -> Any:
    """Return a model output with the last hidden state cut to a range of positions."""
    if isinstance(output, tuple):
        return (output[0][:, positions], *output[1:])
    cut = copy.copy(output)
    cut["last_hidden_state"] = output.last_hidden_state[:, positions]
    return cut
