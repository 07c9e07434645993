"""Attention layers of a checkpoint as a whole: read by their names in the module tree, written changed.

A layer that a method computed lies in a small safetensors file of its own until the writer puts its bytes
where they belong, so one layer is in memory at a time, and a run that was interrupted finds what it has.
A file may name tensors otherwise than the module tree does, or hold several in one (molmo2's `att_proj`).
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.families.blueprint import Shape
from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.pieces import LayerResult, TensorInfo
from mha2gqa.files.quantised import refuse_packed
from mha2gqa.files.streams import Sources
from mha2gqa.files.tensors import locate_tensors, read_tensor, write_tensors
from mha2gqa.heads.grouping import contiguous
from mha2gqa.model.original import Original


@dataclass(frozen=True)
class LayerFiles:
    """Reads the layers of the original, and writes changed ones into a directory."""

    original: Original
    directory: Path

    def read(self, layer: AttentionLayer) -> dict[str, torch.Tensor]:
        """Return the source's tensors of a layer, without the module's own name; empty if the file lacks one."""
        return self.read_module(layer.module)

    def read_module(self, module: str) -> dict[str, torch.Tensor]:
        """Return the source's tensors of any module; empty if the file lacks one."""
        return self._read(module, self._shapes(module), self.original.infos)

    def check_plain(self, layers: Iterable[AttentionLayer]) -> None:
        """Refuse layers of which tensors that would be changed are quantised.

        Raises:
            CheckpointError: One is; the message names it.
        """
        blueprint, spelling = self.original.architecture.blueprint, self.original.spelling
        owned = {
            f"{layer.module}.{name}": torch.empty(shape, device="meta")
            for layer in layers
            for name, shape in self._shapes(layer.module).items()
            if name in layer.changed
        }
        refuse_packed(self.original.config_json, self.original.tensors, spelling.write(blueprint, owned))

    def is_complete(self, layer: AttentionLayer) -> bool:
        """Return whether the file has every tensor of a layer; a layer that shares another's has none."""
        return self._owners(layer.module, self._shapes(layer.module)).keys() <= self.original.infos.keys()

    def _shapes(self, module: str) -> dict[str, Shape]:
        parameters = self.original.architecture.outline.get_submodule(module).named_parameters()
        return {name: tuple(parameter.shape) for name, parameter in parameters}

    def read_embedding(self) -> torch.Tensor | None:
        """Return the input embedding `[V, D]`, where there is a plain one; a tied file may name it as the output."""
        model = self.original.architecture.outline
        try:
            tables = [model.get_input_embeddings(), model.get_output_embeddings()]
        except NotImplementedError:  # transformers finds none in models of several
            return None
        if not isinstance(tables[0], torch.nn.Embedding):
            return None
        is_tied = self.original.architecture.text_config.tie_word_embeddings
        for table in tables if is_tied else tables[:1]:
            name = next((name for name, module in model.named_modules() if module is table), None)
            if name and (tensors := self.read_module(name)):
                return tensors["weight"]
        return None

    def has(self, number: int) -> bool:
        """Return whether a layer was written, by this run or an earlier one."""
        return self._path(number).is_file()

    def read_back(self, number: int, layer: AttentionLayer) -> dict[str, torch.Tensor]:
        """Return a changed layer that was written, without the module's own name."""
        infos, _ = locate_tensors(self._path(number))
        return self._read(
            layer.module, {name: layer.shapes[name] for name in layer.changed}, {info.name: info for info in infos}
        )

    def write(
        self, number: int, layer: AttentionLayer, tensors: Mapping[str, torch.Tensor], report: Mapping[str, Any]
    ) -> None:
        """Write a changed layer in the names and dtypes of the source's file.

        Args:
            number: Of the layer.
            layer: The layer.
            tensors: Its changed tensors, without the module's own name.
            report: What is to be known of it besides: `groups` and whatever else, as JSON.
        """
        filed = self._filed(layer, tensors)
        dtypes = {info.name: DTYPES[info.dtype] for info in self.original.tensors if info.name in filed}
        content = {name: filed[name].to(dtype) for name, dtype in dtypes.items()}
        write_tensors(self._path(number), content, {"report": json.dumps(report)})

    def report(self, number: int) -> dict[str, Any]:
        """Return the report that was written with a layer."""
        report: dict[str, Any] = json.loads(locate_tensors(self._path(number))[1]["report"])
        return report

    def result(self, number: int) -> LayerResult:
        """Return a changed layer that was written, for the plan."""
        groups = tuple(tuple(group) for group in self.report(number)["groups"])
        return LayerResult(groups, locate_tensors(self._path(number))[0])

    def planned(self, layer: AttentionLayer) -> LayerResult:
        """Return what `result` will be, without bytes: for a plan that is only to be printed."""
        filed = self._filed(layer, {name: torch.empty(layer.shapes[name], device="meta") for name in layer.changed})
        infos = [
            replace(
                info,
                shape=(shape := tuple(filed[info.name].shape)),
                size=math.prod(shape) * DTYPES[info.dtype].itemsize,
            )
            for info in self.original.tensors
            if info.name in filed
        ]
        return LayerResult(contiguous(layer.kv_heads, layer.groups), tuple(infos))

    def _filed(self, layer: AttentionLayer, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors of a layer under the names, and in the form, that the file has them in."""
        named = {f"{layer.module}.{name}": tensor for name, tensor in tensors.items()}
        return self.original.spelling.write(self.original.architecture.blueprint, named)

    def _path(self, number: int) -> Path:
        return self.directory / f"layer-{number:04d}.safetensors"

    def _owners(self, module: str, shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
        """Return the file's tensors that hold a module's parameters: name in the file -> names in the module."""
        blueprint, spelling = self.original.architecture.blueprint, self.original.spelling
        owners: dict[str, list[str]] = {}
        for name, shape in shapes.items():
            written = list(spelling.write(blueprint, {f"{module}.{name}": torch.empty(shape, device="meta")}))
            # One that a file keeps in several pieces is as good as missing: no attention is kept so.
            owners.setdefault(written[0] if len(written) == 1 else "", []).append(name)
        return owners

    def _read(
        self, module: str, shapes: Mapping[str, Shape], infos: Mapping[str, TensorInfo]
    ) -> dict[str, torch.Tensor]:
        owners = self._owners(module, shapes)
        if not owners.keys() <= infos.keys():
            return {}
        sources = Sources()
        try:
            tensors: dict[str, torch.Tensor] = {}
            for filed, names in owners.items():
                whole = read_tensor(sources, infos[filed])
                parts = whole.split([shapes[name][0] for name in names]) if len(names) > 1 else (whole,)
                tensors |= dict(zip(names, parts, strict=True))
        finally:
            sources.close()
        return tensors
