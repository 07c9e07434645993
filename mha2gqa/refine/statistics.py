"""Sums over tokens of what goes into each layer's projections, in one forward pass of the original.

An error of a value reaches the output as often as its token is attended to, and in a trained model that is uneven:
heads rest on the first token of a text. What a head reads is a mix z = Σ a x of inputs, and with tokens that are unlike
one another z zᵀ is Σ a² x xᵀ: so what values are multiplied with is counted by the square of the attention that it
receives. In the same way Σ a a' of two heads tells how alike they read, by which errors of heads add up. Inputs of
queries and keys count evenly: keys by attention gain a little on a real model, and lose more on small ones.

That needs the attention weights, which transformers hands out where attention is computed plainly ("eager"); `eager`
switches a model to that for a pass. Of a module that hands out none, all tokens count evenly.

The memory does not depend on the number of tokens: two square matrices of the model's width per layer.

Legend: B sequences, T tokens of each, N of all, H query heads, X inputs of a projection (and one more that is 1 where
the layer has biases).
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.metric import Full, symmetric_product
from mha2gqa.progress import Advance
from mha2gqa.refine.replay import first_tensor, never_called, run_to_head

_ONE = 1e-2
"""What a row of attention weights may add up to beyond 1 by rounding; a sink that is no token leaves less."""
_WEIGHTS = 1 << 26
"""Attention weights of a layer that are in memory at a time, at most, but those of one sequence always."""


class Moments:
    """What one layer's projections are given.

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
        self._read: _Read | None = _Read(layer)
        """None as soon as the module has handed out no attention weights."""

    @contextlib.contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Add up whatever the model's own module of the layer is given in the meantime."""
        module = model.get_submodule(self._layer.module)
        handles = [
            module.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: self._add(name, args[0]))
            for name in dict.fromkeys(self._layer.projections)
        ]
        handles.append(module.register_forward_hook(lambda _m, _args, output: self._leave(output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def statistics(self) -> Statistics:
        """Return the statistics, shrunk towards the identity as far as the text is short.

        Raises:
            CalibrationError: An input or an output was not finite, or the module was never called.
        """
        if not all(self._finite):
            raise self._refusal("outputs")
        queries, keys = self._layer.projections
        if self._alike:
            queries = keys = next(iter(self._alike.values()))
        of_queries = self._moment(self._sums.get(queries))
        of_keys = of_queries if keys == queries else self._moment(self._sums.get(keys))
        if self._read is None or self._read.sum_XX is None:
            return Statistics(of_keys, of_queries)
        # Squares add up to less than there are tokens; only to the shrinking does a metric's size matter.
        read = self._moment(self._read.sum_XX * (self._tokens / self._read.count))
        return Statistics(of_keys, of_queries, read, self._read.together_HH)

    def _add(self, name: str, inputs: torch.Tensor) -> None:
        if name == self._layer.projections[1]:
            self._tokens += inputs.shape[:-1].numel()
            if self._read is not None:
                self._read.keys.append(inputs)
        # Queries, keys and values mostly read one tensor: its moment is then added up once for all of them. A weak
        # reference, as the place of a tensor that is gone may be another's; a name that was alike once and is not any
        # more takes what was added up so far as its own.
        if name not in self._sums and self._last() is inputs:
            self._alike[name] = self._last_name
            return
        if name in self._alike:
            self._sums[name] = self._sums[self._alike.pop(name)].clone()
        self._last, self._last_name = weakref.ref(inputs), name
        x_NX = _rows(self._layer, inputs)
        self._sums[name] = _added(self._sums.get(name), symmetric_product(x_NX.mT, x_NX.mT))

    def _leave(self, output: Any) -> None:
        self._finite.append(torch.isfinite(first_tensor(output)).all())  # not asked before the end: that would wait
        if self._read is not None and not self._read.add(output):
            self._read = None

    def _refusal(self, what: str) -> CalibrationError:
        return CalibrationError(
            f"The {what} of {self._layer.module} are not finite on the calibration text",
            expected="finite activations in every attention layer",
            remedy="Try --dtype float32, or other text",
        )

    def _moment(self, sum_XX: torch.Tensor | None) -> Full:
        if sum_XX is None:
            raise never_called(self._layer.module)
        if not torch.isfinite(sum_XX).all():
            raise self._refusal("inputs")
        width = len(sum_XX)
        # Ledoit and Wolf's idea in its simplest form: as much weight for the identity as for one token per dimension.
        # Of the size of a usual channel: next to a few that are a hundred times as large, as in the stream of any long
        # trained model, one of their mean energy would be more than all that the others have.
        even = torch.eye(width, dtype=sum_XX.dtype, device=sum_XX.device) * sum_XX.diagonal().median()
        return Full((sum_XX + even * (width / max(1, self._tokens))) / (self._tokens + width))


class _Read:
    """What the heads of one layer read: inputs of its keys by the square of the attention that they receive."""

    def __init__(self, layer: AttentionLayer) -> None:
        self._layer = layer
        self._products_HH: torch.Tensor | None = None
        self.keys: list[torch.Tensor] = []
        """Of the call under way, `[B, T, X]`: one, or of two sequences that are read side by side."""
        self.sum_XX: torch.Tensor | None = None
        self.count = 0.0

    @property
    def together_HH(self) -> torch.Tensor | None:
        """Correlation of what two query heads read."""
        if self._products_HH is None:
            return None
        size_H = self._products_HH.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        return self._products_HH / size_H[:, None] / size_H

    def add(self, output: Any) -> bool:
        """Take in what a call has returned; return whether attention weights are in it."""
        given, self.keys = self.keys, []
        weights_BHTT = _weights(output, self._layer.query_heads, given[0]) if len(given) == 1 else None
        if weights_BHTT is None:
            return False
        counts = []
        for weights_HTT in weights_BHTT:  # one sequence at a time: these are the largest tensors of a pass
            flat_HN = weights_HTT.float().flatten(1)
            self._products_HH = _added(self._products_HH, flat_HN @ flat_HN.mT)
            counts.append(flat_HN.square().mean(dim=0).view(weights_HTT.shape[1:]).sum(dim=0))
        count_N = torch.cat(counts)
        x_NX = _rows(self._layer, given[0]) * count_N.sqrt()[:, None]
        self.sum_XX = _added(self.sum_XX, symmetric_product(x_NX.mT, x_NX.mT))
        self.count += float(count_N.sum())
        return True


def _rows(layer: AttentionLayer, inputs: torch.Tensor) -> torch.Tensor:
    # Some channels of a stream are thousands of times as large as others: their squares overflow 16 bits.
    x_NX = inputs.detach().flatten(0, -2).float()
    return torch.cat([x_NX, x_NX.new_ones(len(x_NX), 1)], dim=1) if layer.has_bias else x_NX


def _added(total: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    """Return a sum over batches, which is in fp64; the first makes the tensor."""
    return more.double() if total is None else total.add_(more)


def _weights(output: Any, heads: int, keys: torch.Tensor) -> torch.Tensor | None:
    """Return the attention weights among what a module returns, `[B, H, T, T']`; None where there are none."""
    for one in output if isinstance(output, tuple) else ():
        if not isinstance(one, torch.Tensor) or one.ndim != 4 or one.shape[1] != heads:
            continue
        # Biases by distance are of the same shape, and no distributions.
        if one.shape[::3] == keys.shape[:2] and one[0].min() >= 0 and one[0].sum(dim=-1).max() <= 1 + _ONE:
            return one
    return None


@contextlib.contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention plainly for a while, so that its modules hand out attention weights."""
    before = _implementations(model.config)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _implementations(config: PreTrainedConfig) -> dict[str, Any]:
    """Return how each part of a model computes attention, as `set_attn_implementation` takes it: some can but one."""
    parts = {name: getattr(config, name) for name in config.sub_configs}
    inner = {name: _implementations(part) for name, part in parts.items() if part is not None}
    own = config._attn_implementation
    return inner if own is None else {"": own, **inner}  # a part without a model of its own has none


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
    heads = max((layer.query_heads for layer in layers), default=1)
    advance(0, len(batches_BT))
    with eager(model), contextlib.ExitStack() as hooks:
        for one in moments.values():
            hooks.enter_context(one.watching(model))
        for ids_BT in batches_BT:
            for part_BT in ids_BT.split(max(1, _WEIGHTS // (heads * ids_BT.shape[1] ** 2))):
                run_to_head(model, part_BT)
            advance(1, len(batches_BT))
    return {module: one.statistics() for module, one in moments.items()}
