"""Tensors that are made when their bytes are read: what stands in a checkpoint's file for a tensor that no file holds.

A few finished tensors are kept, because readers take them in runs of bytes: as many as the writer has threads, and
one more. Which tensors are made of which, and how, is `host.py`'s and `rehost.py`'s.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mha2gqa.files.pieces import VirtualFile

_KEPT = 4


class Recent:
    """The tensors that were made last, as bytes; shared between threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, make: Callable[[], torch.Tensor]) -> memoryview:
        """Return the bytes of a tensor, made now unless they are kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        content = make().contiguous().view(-1).view(torch.uint8).numpy().data
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return content


@dataclass(frozen=True, eq=False)
class MadeFile(VirtualFile):
    """A tensor that is made when it is read."""

    path: Path
    make: Callable[[], torch.Tensor] = field(repr=False)
    recent: Recent = field(repr=False)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the tensor's bytes from `offset` on."""
        view[:] = self.recent.get(id(self), self.make)[offset : offset + len(view)]
