"""Finished layers of latent attention, a small file each, until the writer puts their bytes where they belong.

As `model/layers.py` keeps those of other conversions; here names and shapes are the host's, not the source's.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mha2gqa.errors import CalibrationError
from mha2gqa.files.pieces import LayerResult
from mha2gqa.files.streams import Sources
from mha2gqa.files.tensors import locate_tensors, read_tensor, write_tensors
from mha2gqa.targets.latent.host import LatentHost


class RangeError(CalibrationError):
    """A fit has numbers beyond the dtype of the file: of cached rows so alike that what reads them is very large."""


@dataclass(frozen=True)
class LatentFiles:
    """The finished layers of one host."""

    directory: Path
    """It is made with the first of them."""
    host: LatentHost

    def has(self, number: int) -> bool:
        """Return whether a layer was written, by this run or an earlier one."""
        return self._path(number).is_file()

    def write(self, number: int, tensors: Mapping[str, torch.Tensor], report: Mapping[str, Any]) -> None:
        """Write a layer, rounded to the dtype of the host's file.

        Args:
            number: Of the layer.
            tensors: By their names in the host's attention module.
            report: What is to be known of it besides, as JSON.

        Raises:
            RangeError: A tensor does not fit into the dtype.
        """
        module = self.host.source.layers[number].module
        content = {f"{module}.{name}": tensor.to(self.host.dtype) for name, tensor in tensors.items()}
        for name, tensor in content.items():
            if not torch.isfinite(tensor).all():
                raise RangeError(
                    f"Tensor {name!r} of the latent form does not fit into {self.host.dtype}",
                    expected="numbers that it has",
                    remedy="Choose another --rope-width, or convert an fp32 or bf16 copy of the checkpoint",
                )
        self.directory.mkdir(parents=True, exist_ok=True)
        write_tensors(self._path(number), content, {"report": json.dumps(report)})

    def read(self, number: int) -> dict[str, torch.Tensor]:
        """Return a layer's tensors by their names in the host's attention module."""
        module, sources = self.host.source.layers[number].module, Sources()
        try:
            infos = locate_tensors(self._path(number))[0]
            return {info.name.removeprefix(f"{module}."): read_tensor(sources, info) for info in infos}
        finally:
            sources.close()

    def report(self, number: int) -> dict[str, Any]:
        """Return the report that was written with a layer."""
        report: dict[str, Any] = json.loads(locate_tensors(self._path(number))[1]["report"])
        return report

    def results(self) -> list[LayerResult]:
        """Return all layers, for the plan."""
        return [
            LayerResult((), locate_tensors(self._path(number))[0]) for number in range(len(self.host.source.layers))
        ]

    def write_loss(self, loss: float) -> None:
        """Keep what the model of these layers loses."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "loss").write_text(repr(loss), encoding="utf-8")

    def read_loss(self) -> float:
        """Return what was kept; not a number where nothing was."""
        path = self.directory / "loss"
        return float(path.read_text(encoding="utf-8")) if path.is_file() else math.nan

    def drop_layers(self) -> None:
        """Remove the layers; the loss stays."""
        for number in range(len(self.host.source.layers)):
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.directory / f"layer-{number:04d}.safetensors"
