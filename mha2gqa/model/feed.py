"""Runs models of every kind on blocks of tokens: what they are fed, and their logits a few positions at a time.

A causal model reads the tokens, an encoder-decoder reads them in both halves, a masked model reads them
unmasked; a model without a head ("embedding") gives hidden states and no logits. `Body` runs everything below
the output projection once and then gives the logits of any range of positions through the class's own forward,
scaling and soft-capping included, so that the logits of a whole block are never in memory.

Legend: B blocks of a batch, T tokens of a block, C positions of a chunk, V vocabulary.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

Kind: TypeAlias = Literal["causal", "encoder-decoder", "masked", "embedding"]
Result = TypeVar("Result")

_HEADLESS = frozenset(
    name for names in MODEL_MAPPING_NAMES.values() for name in ([names] if isinstance(names, str) else names)
)
_PROBED = 12
"""Positions on which chunked logits are held against whole ones before they are relied on."""
_REORDERED = 1e-4
"""What the order of the sums in an output projection changes, as a fraction of the largest logit."""


def kind_of(model: PreTrainedModel) -> Kind:
    """Return how a model is fed."""
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    names = {kind.__name__ for kind in type(model).__mro__}  # a class that ships is one of transformers' own, too
    if names & {*MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()}:
        return "masked"
    return "embedding" if names & _HEADLESS else "causal"


def answers_text_with_text(model: PreTrainedModel) -> bool:
    """Return whether a class reads a text and writes another."""
    names = {kind.__name__ for kind in type(model).__mro__}
    return bool(names & {*MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()})


def sees_ahead(model: PreTrainedModel) -> bool:
    """Return whether a class that has a causal form is built as an encoder: its logits know the tokens they predict."""
    named = model.config.model_type.removesuffix("_gqa") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind_of(model) == "causal" and named and getattr(model.config, "is_decoder", None) is False


def inputs(
    model: PreTrainedModel, ids_BT: torch.Tensor, encoder_ids_BT: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Return the keyword arguments of a forward pass on blocks of tokens.

    Args:
        model: Who reads them.
        ids_BT: What a decoder, or the only half, reads.
        encoder_ids_BT: What the encoder of an encoder-decoder reads; None is the same.
    """
    if kind_of(model) != "encoder-decoder":
        return {"input_ids": ids_BT.to(model.device)}
    encoded_BT = ids_BT if encoder_ids_BT is None else encoder_ids_BT
    return {"input_ids": encoded_BT.to(model.device), "decoder_input_ids": ids_BT.to(model.device)}


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

    def read(self, ids_BT: torch.Tensor, **more: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """Run the model on a batch, and return what gives the logits `[B, C, V]` of a range of positions.

        What a forward is given besides the tokens (`position_ids`) is `more`.
        """
        return self.answer(inputs(self.model, ids_BT) | more)

    def answer(self, given: Mapping[str, torch.Tensor]) -> Callable[[slice], torch.Tensor]:
        """Run the model as `read` does, on the keyword arguments of its forward."""
        fed = dict(given) | self._no_cache()
        if self._inner is None:
            logits_BTV = self._logits(fed)
            return lambda positions: logits_BTV[:, positions]
        output = self._run_inner(fed)
        return lambda positions: self._logits(fed, replaced=_cut(output, positions))

    def _no_cache(self) -> dict[str, Any]:
        return {"use_cache": False} if kind_of(self.model) in ("causal", "encoder-decoder") else {}

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
        fed = inputs(self.model, probe_BT) | self._no_cache()
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
