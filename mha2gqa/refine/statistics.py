"""Sums over tokens of what goes into each layer's projections, in one forward pass of the original.

The memory does not depend on the number of tokens: one square matrix of the model's width per layer.

Legend: N tokens, X inputs of a projection (and one more that is 1 where the layer has biases).
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.metric import Full, symmetric_product
from mha2gqa.model.feed import inputs
from mha2gqa.progress import Advance
from mha2gqa.refine.replay import first_tensor, never_called


class Moments:
    """Second moments of what goes into one layer's projections.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: AttentionLayer) -> None:
        self._layer = layer
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens = 0
        self._finite: list[torch.Tensor] = []
        self._last: Callable[[], torch.Tensor | None] = lambda: None
        self._last_name = ""
        self._alike: dict[str, str] = {}
        """Projections that so far were given the very tensors that another was given -> that one."""

    def watch(self, model: PreTrainedModel) -> list[torch.utils.hooks.RemovableHandle]:
        """Add up whatever the model's own module of the layer is given from now on."""
        module = model.get_submodule(self._layer.module)
        projections = [
            module.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: self._add(name, args[0]))
            for name in dict.fromkeys(self._layer.projections)
        ]
        return [*projections, module.register_forward_hook(lambda _m, _args, output: self._look_at(output))]

    def statistics(self) -> Statistics:
        """Return the statistics, shrunk towards the identity as far as the text is short.

        Raises:
            CalibrationError: An input or an output was not finite, or the module was never called.
        """
        if not all(self._finite):
            raise self._refusal("outputs")
        queries, keys = self._layer.projections
        if self._alike:
            both = Full(self._moment(next(iter(self._alike.values()))))
            return Statistics(both, both)
        return Statistics(Full(self._moment(keys)), Full(self._moment(queries)))

    def _add(self, name: str, inputs: torch.Tensor) -> None:
        if name == self._layer.projections[1]:
            self._tokens += inputs.shape[:-1].numel()
        # Queries, keys and values mostly read one tensor: its moment is then added up once for all of them. A weak
        # reference, as the place of a tensor that is gone may be another's; a name that was alike once and is not any
        # more takes what was added up so far as its own.
        if name not in self._sums and self._last() is inputs:
            self._alike[name] = self._last_name
            return
        if name in self._alike:
            self._sums[name] = self._sums[self._alike.pop(name)].clone()
        self._last, self._last_name = weakref.ref(inputs), name
        # Some channels of a stream are thousands of times as large as others: their squares overflow 16 bits. Sums over
        # batches are in fp64, of which the first makes the tensor.
        x_NX = inputs.detach().flatten(0, -2).float()
        if self._layer.has_bias:
            x_NX = torch.cat([x_NX, x_NX.new_ones(len(x_NX), 1)], dim=1)
        moment = symmetric_product(x_NX.mT, x_NX.mT)
        if name in self._sums:
            self._sums[name] += moment
        else:
            self._sums[name] = moment.double()

    def _look_at(self, output: Any) -> None:
        self._finite.append(torch.isfinite(first_tensor(output)).all())  # not asked before the end: that would wait

    def _refusal(self, what: str) -> CalibrationError:
        return CalibrationError(
            f"The {what} of {self._layer.module} are not finite on the calibration text",
            expected="finite activations in every attention layer",
            remedy="Try --dtype float32, or other text",
        )

    def _moment(self, name: str) -> torch.Tensor:
        moment_XX = self._sums.get(name)
        if moment_XX is None:
            raise never_called(self._layer.module)
        if not torch.isfinite(moment_XX).all():
            raise self._refusal("inputs")
        width = len(moment_XX)
        even = torch.eye(width, dtype=moment_XX.dtype, device=moment_XX.device) * (moment_XX.trace() / width)
        # Ledoit and Wolf's idea in its simplest form: as much weight for the identity as for one token per dimension.
        return (moment_XX + even * (width / max(1, self._tokens))) / (self._tokens + width)


@torch.no_grad()
def gather_statistics(
    model: PreTrainedModel,
    layers: Sequence[AttentionLayer],
    batches_BT: Sequence[torch.Tensor],
    advance: Advance,
) -> dict[str, Statistics]:
    """Run the original over the calibration text and return the statistics of each layer's module.

    Args:
        model: The original.
        layers: The layers.
        batches_BT: Token ids.
        advance: Told of every batch.

    Raises:
        CalibrationError: An activation is not finite.
    """
    moments = {layer.module: Moments(layer) for layer in layers}
    handles = [handle for one in moments.values() for handle in one.watch(model)]
    try:
        for ids_BT in batches_BT:
            model(**inputs(model, ids_BT))
            advance(1, len(batches_BT))
    finally:
        for handle in handles:
            handle.remove()
    return {module: one.statistics() for module, one in moments.items()}
