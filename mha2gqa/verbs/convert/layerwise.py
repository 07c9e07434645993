"""Conversions that change attention layers as a whole: which layers, by what knowledge, in which order.

Three ways, each of which leaves one small file per layer: from the weights alone, a layer at a time; by
statistics of the original on text; refined on text, layer after layer. `plan.py` then puts the files where
the layers belong. Layers whose projections cannot be told apart are left to the plan, which averages their
keys and values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.files.pieces import LayerResult
from mha2gqa.heads.attention import Statistics
from mha2gqa.model.layers import LayerFiles
from mha2gqa.progress import Progress
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.joint import train_jointly
from mha2gqa.refine.merge import LayerMerge, Merged
from mha2gqa.refine.prior import Prior, norm_gains, norm_name
from mha2gqa.refine.refine import LayerReport, Refinement, Refiner, keep_aside
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.refine.student import build_student, install, own_tensors
from mha2gqa.targets.plan import Plan

DIVERGENCE = "divergence"
"""Key under which each layer's file keeps what `train_jointly` returns, for a run that goes on behind it."""
BATCH_TOKENS = 4096
"""Tokens of one batch of calibration text."""
_LEARNED_TOKENS, _LEARNED_BATCHES = 512, 256
"""The same where layers are trained, which takes a step for each: so many, and more where text is long enough for so
many batches. Many short steps are worth more than few long ones: of SmolLM2's ninth layer, on 32,768 tokens, 1,200
steps of 512 leave the 12.5 % of the output's energy on other text that 300 of 4,096 do, in half the time."""
_LEAST_BATCHES = 8
"""Batches that a refinement divides its text into, at least, where it has as many blocks."""


@dataclass(frozen=True, kw_only=True)
class Layerwise:
    """The layers of one conversion, and where their files go."""

    files: LayerFiles
    plan: Plan
    merge: LayerMerge
    progress: Progress
    device: torch.device
    """Where weights are merged when no model is loaded."""

    @cached_property
    def layers(self) -> list[AttentionLayer]:
        """The layers that change, first to last."""
        return [layer for layer in self.plan.aim.layers() if self.files.is_complete(layer)]

    def unseen(self, blocks_NT: torch.Tensor) -> str:
        """Return what the report has to say where text is too short to reach every direction of a layer's inputs."""
        tokens, inputs = blocks_NT.numel(), max(layer.inputs for layer in self.layers)
        if tokens >= inputs:
            return ""
        return f"; {tokens:,} tokens cannot tell all of a layer's {inputs:,} inputs apart: the others count as even"

    def results(self) -> list[LayerResult]:
        """Return the finished layers."""
        return [self.files.result(number) for number in range(len(self.layers)) if self.files.has(number)]

    def planned(self) -> list[LayerResult]:
        """Return what `results` will be, without bytes."""
        return [self.files.planned(layer) for layer in self.layers]

    def from_weights(self, count: int | None = None) -> None:
        """Merge each layer, or the first few, by what its weights, and those before it, tell."""
        prior: Prior | None = None
        for number, layer in enumerate(self.layers[:count]):
            tensors = {name: tensor.to(self.device) for name, tensor in self.files.read(layer).items()}
            prior = prior or self._prior(len(tensors[layer.output]))
            self._write(number, layer, self.merge(layer, tensors, self._guess(prior, layer, tensors)))
            prior.add(tensors[layer.output])

    def from_statistics(self, original: PreTrainedModel, blocks_NT: torch.Tensor) -> None:
        """Merge each layer by statistics of the original's inputs on text."""
        statistics = gather_statistics(original, self.layers, batches(blocks_NT), self.progress.part("statistics"))
        for number, layer in enumerate(self.layers):
            merged = self.merge(layer, own_tensors(original, layer), statistics.pop(layer.module))
            self._write(number, layer, merged)

    def refined(
        self,
        original: PreTrainedModel,
        blocks_NT: torch.Tensor,
        refinement: Refinement,
        options: Descent,
        memory: Activations,
    ) -> "Layerwise":
        """Merge and refine each layer on text; layers that an earlier run finished are taken over.

        Returns:
            Where the result is: here, or for `joint` in a directory of its own, so that a run that is interrupted
            never takes layers that were trained together for those they are made of.
        """
        whole = batches(blocks_NT, whole=True)
        student = self._empty_student(original)
        refiner = Refiner(original, student, whole, self.merge, refinement, options, memory, self.files)
        refiner.run(self.layers, self.progress)
        if refinement != "joint":
            return self
        together = self.beside("joint")
        if all(together.files.has(number) for number in range(len(self.layers))):
            return together
        aside, training = keep_aside(whole)
        dtypes = {f"{one.module}.{name}": dtype for one in self.layers for name, dtype in self._file_dtypes(one)}
        advance = self.progress.part("joint")
        divergence = train_jointly(original, student, self.layers, training, aside, dtypes, options, advance)
        for number, layer in enumerate(self.layers):
            module = student.get_submodule(layer.module)
            tensors = {name: module.get_parameter(name).detach() for name in layer.changed}
            together.files.write(number, layer, tensors, self.files.report(number) | {DIVERGENCE: divergence})
        return together

    def beside(self, name: str) -> "Layerwise":
        """Return the same conversion with its files in a directory of its own below this one's."""
        directory = self.files.directory / name
        directory.mkdir(exist_ok=True)
        return self.at(directory)

    def at(self, directory: Path) -> "Layerwise":
        """Return the same conversion with its files in another directory."""
        return replace(self, files=replace(self.files, directory=directory))

    def _file_dtypes(self, layer: AttentionLayer) -> Iterator[tuple[str, torch.dtype]]:
        tensors = self.files.read(layer)
        return ((name, tensors[name].dtype) for name in layer.changed)

    def student(self, original: PreTrainedModel) -> PreTrainedModel:
        """Return the converted model around the original's weights, its layers as they were written."""
        student = self._empty_student(original)
        for number, layer in enumerate(self.layers):
            install(student.get_submodule(layer.module), self.files.read_back(number, layer))
        return student

    def _empty_student(self, original: PreTrainedModel) -> PreTrainedModel:
        return build_student(original, self.plan.result.config, self.layers)

    def _prior(self, width: int) -> Prior:
        embedding = self.files.read_embedding()
        return Prior(None if embedding is None else embedding.to(self.device), width, self.device)

    def _guess(self, prior: Prior, layer: AttentionLayer, tensors: dict[str, torch.Tensor]) -> Statistics | None:
        """Return the prior's guess for a layer; None where its keys read something else than the stream."""
        width = len(tensors[layer.output])
        queries, keys = (tensors[f"{name}.weight"].shape[1] for name in layer.projections)
        if layer.is_cross or {queries, keys} != {width}:
            return None
        model = self.files.original.architecture.outline
        norm = norm_name(model, layer.module)
        gains = None if norm is None else norm_gains(model.get_submodule(norm), self.files.read_module(norm), width)
        return prior.statistics(gains, has_bias=layer.has_bias)

    def _write(self, number: int, layer: AttentionLayer, merged: Merged) -> None:
        report = LayerReport(module=layer.module, groups=merged.groups, keys=layer.keys, values=layer.values, errors={})
        self.files.write(number, layer, merged.tensors, vars(report))
        self.progress.layer(layer.module, report.errors, number + 1, len(self.layers))


def batches(blocks_NT: torch.Tensor, *, whole: bool = False) -> Sequence[torch.Tensor]:
    """Cut blocks into batches.

    Args:
        blocks_NT: The blocks.
        whole: All batches have one shape, and blocks that are left over are dropped; there are several of them,
            so that some can be kept aside.
    """
    count, context = blocks_NT.shape
    if not whole:
        return list(blocks_NT.split(max(1, BATCH_TOKENS // context)))
    size = blocks_of_a_step(count, context)
    cut: list[torch.Tensor] = [batch for batch in blocks_NT.split(size) if len(batch) == size]
    return cut


def blocks_of_a_step(count: int, context: int) -> int:
    """Return how many blocks a training step reads, of a text of `count` blocks of `context` tokens."""
    wanted = max(_LEARNED_TOKENS // context, count // _LEARNED_BATCHES)
    return max(1, min(wanted, BATCH_TOKENS // context, count // _LEAST_BATCHES))
