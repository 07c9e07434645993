"""How far the attention outputs of two models are apart, module by module, each on its own inputs.

The original's outputs of one batch are kept until the converted model has passed the same module; then
only sums remain. Where the outputs of all layers would not fit into `_KEPT` numbers, evenly spaced
positions stand for all.

Legend: B blocks, T tokens, D width.
"""

import contextlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from mha2gqa.verbs.verify.differences import LayerError

_KEPT = 1 << 25
"""Numbers of a batch's attention outputs that are kept: 64 MB in 16 bits."""


class LayerErrors:
    """Sums over tokens of the squared differences, by module."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        """Take the names of the attention modules: in the converted model's tree -> in the original's."""
        self._modules = modules
        self._kept: defaultdict[str, deque[torch.Tensor]] = defaultdict(deque)
        self._squares: dict[str, float] = dict.fromkeys(modules, 0.0)
        self._errors: dict[str, float] = dict.fromkeys(modules, 0.0)

    @contextlib.contextmanager
    def original(self, model: nn.Module) -> Iterator[None]:
        """While the block runs, keep what the attention modules of the original give."""
        self._kept.clear()
        with self._hooked(model, self._modules, self._keep):
            yield

    @contextlib.contextmanager
    def converted(self, model: nn.Module) -> Iterator[None]:
        """While the block runs, compare what the attention modules of the converted model give with what was kept."""
        with self._hooked(model, {name: name for name in self._modules}, self._compare):
            yield

    def results(self) -> tuple[LayerError, ...]:
        """Return the relative errors in the order of the modules; modules that never ran are left out."""
        return tuple(
            LayerError(module=module, error=math.sqrt(self._errors[module] / self._squares[module]))
            for module in self._modules
            if self._squares[module] > 0
        )

    @contextlib.contextmanager
    def _hooked(
        self, model: nn.Module, paths: Mapping[str, str], see: Callable[[str, torch.Tensor], None]
    ) -> Iterator[None]:
        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, arguments, output: see(name, output[0] if isinstance(output, tuple) else output)

        handles = [model.get_submodule(path).register_forward_hook(hook(name)) for name, path in paths.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, output_BTD: torch.Tensor) -> None:
        self._kept[name].append(self._thinned(output_BTD).clone())  # what follows may add to it in place

    def _compare(self, name: str, output_BTD: torch.Tensor) -> None:
        original_BTD = _wide(self._kept[name].popleft())  # a shared module runs several times, in the same order
        converted_BTD = _wide(self._thinned(output_BTD)).to(original_BTD.device)
        self._squares[name] += original_BTD.square().sum().item()
        self._errors[name] += (converted_BTD - original_BTD).square().sum().item()

    def _thinned(self, output_BTD: torch.Tensor) -> torch.Tensor:
        step = math.ceil(len(self._modules) * output_BTD.numel() / _KEPT)
        return output_BTD[:, ::step]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
