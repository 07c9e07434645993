"""Inputs of keys and values counted by the attention that each token receives; those of queries evenly.

An error of a key or a value reaches the output as often as its token is attended to, and in a trained model that is
uneven: the first token of a text takes most of it in many heads. So a token counts with the attention that all queries
of all heads give it together. That needs the attention weights, which transformers hands out where attention is
computed plainly ("eager"); the model is switched to that for the pass.

Legend: B sequences, T tokens, H query heads, X inputs (and one more that is 1 where the layer has biases).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.metric import Full, symmetric_product
from mha2gqa.model.feed import inputs
from mha2gqa.refine.statistics import Moments


@torch.no_grad()
def gather_received(
    model: PreTrainedModel,
    layers: Sequence[AttentionLayer],
    batches_BT: Sequence[torch.Tensor],
    progress: Callable[[int, int], object],
) -> dict[str, Statistics]:
    """Run the original over the calibration text and return the statistics of each layer's module.

    Args:
        model: The original.
        layers: The layers; causal self-attention.
        batches_BT: Token ids.
        progress: Told of every batch, and of how many there are.

    Raises:
        CalibrationError: An activation is not finite, or a module does not hand out its attention weights.
    """
    evenly = {layer.module: Moments(layer) for layer in layers}
    received = {layer.module: ReceivedMoment(layer) for layer in layers}
    with eager(model), contextlib.ExitStack() as hooks:
        for module in evenly:
            for handle in (*evenly[module].watch(model), *received[module].watch(model)):
                hooks.callback(handle.remove)
        for batch in batches_BT:
            model(**inputs(model, batch))
            progress(1, len(batches_BT))
    found = {module: one.statistics() for module, one in evenly.items()}
    return {module: Statistics(received[module].metric(), one.query_inputs) for module, one in found.items()}


class ReceivedMoment:
    """Second moment of what one layer's keys are made of, each token counted by the attention that it receives.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: AttentionLayer) -> None:
        self._layer = layer
        self._inputs_BTX: torch.Tensor | None = None
        self._sum_XX: torch.Tensor | None = None
        self._tokens = 0

    def watch(self, model: PreTrainedModel) -> list[torch.utils.hooks.RemovableHandle]:
        """Add up whatever the model's own module of the layer is given from now on."""
        module = model.get_submodule(self._layer.module)
        keys = module.get_submodule(self._layer.projections[1])
        return [keys.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]

    def metric(self) -> Full:
        """Return the moment, shrunk towards the identity as far as the text is short.

        Raises:
            CalibrationError: There was no text.
        """
        if self._sum_XX is None:
            raise CalibrationError(f"{self._layer.module} was not run on the calibration text")
        width, sum_XX = len(self._sum_XX), self._sum_XX
        even_XX = torch.eye(width, dtype=sum_XX.dtype, device=sum_XX.device) * (sum_XX.trace() / width)
        # As `statistics.Moments`: every query gives attention of 1, so tokens count as much in all as they are.
        return Full((sum_XX + even_XX * (width / self._tokens)) / (self._tokens + width))

    def _enter(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._inputs_BTX = args[0]

    def _leave(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        weights_BHTT = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights_BHTT is None or self._inputs_BTX is None:
            raise CalibrationError(f"{self._layer.module} does not hand out its attention weights")
        count_N = weights_BHTT.float().sum(dim=2).mean(dim=1).flatten()
        x_NX = self._inputs_BTX.flatten(0, -2).float()
        if self._layer.has_bias:
            x_NX = torch.cat([x_NX, x_NX.new_ones(len(x_NX), 1)], dim=1)
        counted_NX = x_NX * count_N.sqrt()[:, None]
        moment_XX = symmetric_product(counted_NX.mT, counted_NX.mT).double()
        self._sum_XX = moment_XX if self._sum_XX is None else self._sum_XX + moment_XX
        self._tokens += len(x_NX)


@contextlib.contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention plainly for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
