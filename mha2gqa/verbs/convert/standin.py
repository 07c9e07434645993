"""The original, in which attention layers are for a while what fewer KV heads and a window make of them.

Merged keys and values are repeated for the heads that share them, so that the original's own class computes exactly
what the converted layer will. A window stands in a second model around the same tensors.

Legend: G KV heads of a layer of the result.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.grouping import divisors
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.refine.student import build_student, install, own_tensors
from mha2gqa.targets.by_layer import heads_of
from mha2gqa.targets.window import Window
from mha2gqa.verbs.convert.options import ConvertOptions


class Standin:
    """The original in the place of results that are not made.

    Args:
        options: How heads are merged, and W.
        original: The original.
        hosted: The same in the class that the result has.
        model: That one, loaded.
        batches_BT: Text to learn from.
        progress: Told of every batch.
    """

    def __init__(
        self,
        options: ConvertOptions,
        original: Original,
        hosted: Original,
        model: PreTrainedModel,
        batches_BT: Sequence[torch.Tensor],
        progress: Progress,
    ) -> None:
        source, heads = original.architecture, heads_of(original.architecture)
        names = source.attention_modules
        self._layers: dict[tuple[int, int], AttentionLayer] = {}
        for groups in sorted({groups for one in heads for groups in divisors(one)}):
            moves = [(one, groups) for one in source.counts if one.heads > groups and one.heads % groups == 0]
            self._layers |= {(names.index(one.module), groups): one for one in source.attention_layers(moves)}
        read = [one for (_, groups), one in self._layers.items() if groups == 1]
        self._merge = LayerMerge(method=options.method, grouping=options.grouping, seed=options.seed)
        self._statistics = gather_statistics(model, read, batches_BT, progress.part("statistics"))
        self._model, self._hosted, self._window = model, hosted, options.window

    def lost(self, kept: Mapping[int, tuple[int, bool]], measure: Callable[[PreTrainedModel], float]) -> float:
        """Return what is lost when some layers, by number, keep G heads each, and the window's tokens or all."""
        bounded, model = tuple(number for number, (_, has) in kept.items() if has), self._model
        if bounded and self._window is not None:
            config = Window(self._window, bounded).aim(self._hosted).result.config
            model = build_student(self._model, config, [])  # around the same tensors, in which heads are merged
        with self._merged(
            [layer for number, (groups, _) in kept.items() if (layer := self._layers.get((number, groups)))]
        ):
            return measure(model)

    @contextmanager
    def _merged(self, layers: Sequence[AttentionLayer]) -> Iterator[None]:
        """Have some layers with fewer heads as long as the block runs."""
        kept: list[tuple[str, dict[str, torch.Tensor]]] = []
        try:
            for layer in layers:
                own = own_tensors(self._model, layer)
                kept.append((layer.module, {name: own[name].clone() for name in layer.changed}))
                merged = self._merge(layer, own, self._statistics[layer.module]).tensors
                install(self._model.get_submodule(layer.module), _repeated(layer, merged))
            yield
        finally:
            for module, tensors in kept:
                install(self._model.get_submodule(module), tensors)


def _repeated(layer: AttentionLayer, merged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a merged layer in the shapes of the original: each KV head once for each that it stands for."""
    shared = {block.name for block in layer.blocks if block.part in ("k", "v")}
    times = layer.kv_heads // layer.groups
    return {
        name: tensor.unflatten(0, (layer.groups, -1)).repeat_interleave(times, dim=0).flatten(0, 1)
        if name in shared
        else tensor
        for name, tensor in merged.items()
    }
