"""The text kept aside judges: nothing that is held against it has read it."""

from pathlib import Path
from typing import Any

import torch

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.progress import QUIET
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.refine import Refiner, count_aside
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.refine.student import own_tensors
from tests.refine.pairs import make_pair, token_batches


class Kept:
    """Layers in memory, in the place of their files."""

    def __init__(self, model: Any) -> None:
        self._model, self._reports = model, dict[int, dict[str, Any]]()

    def has(self, number: int) -> bool:
        return False

    def read(self, layer: AttentionLayer) -> dict[str, torch.Tensor]:
        return own_tensors(self._model, layer)

    def write(self, number: int, layer: AttentionLayer, tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> None:
        self._reports[number] = told

    def report(self, number: int) -> dict[str, Any]:
        return self._reports[number]


def test_a_merge_knows_the_text_that_is_learned_from_alone(tmp_path: Path) -> None:
    """What the first layer is merged by is what a pass over the other batches gathers, and not over all."""
    pair, batches = make_pair("llama"), token_batches(16, 24)
    plain, known = LayerMerge(method="aligned", grouping="contiguous", seed=0), []

    def merge(layer: AttentionLayer, tensors: Any, statistics: Any) -> Any:
        known.append(statistics)
        return plain(layer, tensors, statistics)

    files, memory, options = Kept(pair.original), Activations(10**9, tmp_path), Descent(steps=1)
    refiner: Any = Refiner
    refiner(pair.original, pair.student, batches, merge, "refit", options, memory, files).run(pair.layers[:1], QUIET)
    aside, first = count_aside(len(batches)), pair.layers[0]
    assert aside == 2
    rest, everything = (
        gather_statistics(pair.original, [first], some, lambda *_: None)[first.module]
        for some in (batches[aside:], batches)
    )
    rows = torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(known[0].of_values.gram(rows), rest.of_values.gram(rows), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(known[0].of_values.gram(rows), everything.of_values.gram(rows), rtol=1e-2, atol=1e-3)
