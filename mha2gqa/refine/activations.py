"""Keeps activations between the passes of a refinement: in memory up to a budget, beyond it on disk.

A tensor on disk is a memory map of an unlinked file, so it is used like any other and its space is free again
as soon as it is dropped, also when the process is killed.
"""

import copy
import itertools
import os
import weakref
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Activations:
    """A store with a budget.

    Args:
        budget: Bytes to hold in memory.
        directory: Where the files of the rest go.
    """

    def __init__(self, budget: int, directory: Path) -> None:
        self._budget, self._directory = budget, directory
        self._numbers = itertools.count()
        self.in_memory = 0
        """Bytes held in memory now."""
        self.spilled = 0
        """Bytes written to disk so far."""

    def keep(self, tree: Any) -> Any:
        """Return a copy on the CPU of a tensor, or of all tensors in nested tuples, lists and dicts."""
        return map_tensors(self._keep, tree)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.nbytes
        if self.in_memory + size > self._budget and size:
            return self._spill(tensor)
        kept = tensor.detach().to("cpu", copy=True)
        self.in_memory += size
        weakref.finalize(kept.untyped_storage(), self._release, size)
        return kept

    def _release(self, size: int) -> None:
        self.in_memory -= size

    def _spill(self, tensor: torch.Tensor) -> torch.Tensor:
        path = self._directory / f"activation-{next(self._numbers)}"
        try:
            with path.open("wb") as file:  # a memory map of a file that the disk cannot hold would end the process
                os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
            kept = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        finally:
            path.unlink(missing_ok=True)
        self.spilled += tensor.nbytes
        return kept.view(tensor.shape).copy_(tensor.detach())


def to_device(tree: Any, device: torch.device) -> Any:
    """Return nested tuples, lists and dicts with every tensor on `device`."""
    return map_tensors(lambda tensor: tensor.to(device), tree)


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """Return nested tuples, lists and dicts anew, with a function's result in the place of every tensor.

    A `UserDict`, in which blocks share keys and values, is a dict here, though it is none to pytree.
    """

    def change(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return function(leaf)
        if isinstance(leaf, UserDict):
            changed = copy.copy(leaf)
            changed.data = map_tensors(function, leaf.data)
            return changed
        return leaf

    return pytree.tree_map(change, tree)
