"""`--groups auto --cache 25%`: to each layer the KV heads that it needs, and with `--window` which layers have it.

Each layer is measured with each number of heads alone, and with the window alone; what it loses by both is taken for
the sum. An exact knapsack over these losses gives the best few plans under the budget; they are measured whole, beside
the uniform ones that fit, and the least loss is taken.

What the inputs of all layers tell is in memory at once, as for every method that reads text: 8 D² bytes a layer (4.3 GB
for 32 layers of width 4096), in one pass over the text; a layer at a time would take as many passes as there are.

Legend: G KV heads of a layer of the result, K of the source, D model width, T tokens that the model reads, W of the
window.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import GroupsError
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.grouping import divisors
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.refine.student import build_student, install, own_tensors
from mha2gqa.targets.by_layer import HeadsByLayer, heads_of
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.window import Window, write_layers
from mha2gqa.verbs.convert.conversion import Text
from mha2gqa.verbs.convert.layerwise import batches
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.scale import PLANS, Choice, Scale, check_beyond, divided

Kept: TypeAlias = tuple[int, bool]
"""What a layer keeps: G, and whether of the window's tokens alone."""
Plan: TypeAlias = tuple[Kept, ...]
K = TypeVar("K", bound=Hashable)
_HALF = 0.5
"""Share of the cache that is kept, unless another is asked for."""


@dataclass(frozen=True)
class _Budget:
    """What a layer may keep, and what it costs: tokens times KV heads, of a text as long as the model reads."""

    heads: tuple[int, ...]
    """K of each layer."""
    window: int | None
    length: int
    """T; 1 without a window."""
    share: float

    @classmethod
    def of(cls, options: ConvertOptions, original: Original) -> "_Budget":
        """Return the budget that was asked for.

        Raises:
            GroupsError: Not even one KV head a layer fits, with the window where there is one.
        """
        model = original.architecture
        length = int(model.text_config.max_position_embeddings) if options.window else 1
        share = _HALF if options.cache is None else options.cache
        found = cls(heads_of(model), options.window, length, share)
        least = len(found.heads) * min(map(found.cost, found.choices))
        if found.most < least:
            kept = f" and the last {options.window} of {length} tokens" if options.window else ""
            raise GroupsError(
                f"--cache {share:.1%} leaves less than one KV head{kept} a layer, of {max(found.heads)}",
                expected=f"{least / (sum(found.heads) * length):.1%} or more",
            )
        return found

    @property
    def most(self) -> int:
        """What all layers may cost together."""
        return math.floor(self.share * sum(self.heads) * self.length + 1e-9)

    @property
    def whole(self) -> Kept:
        """What a layer keeps now."""
        return max(self.heads), False

    @property
    def choices(self) -> list[Kept]:
        """What a layer may keep."""
        return [(groups, has) for has in (False, True)[: 1 + bool(self.window)] for groups in divisors(max(self.heads))]

    def cost(self, kept: Kept) -> int:
        """Return what a layer costs."""
        groups, has_window = kept
        return groups * (min(self.window or self.length, self.length) if has_window else self.length)

    def uniform(self) -> Iterator[Plan]:
        """Yield the plans whose layers are alike, the largest that fit with and without the window."""
        for has in (False, True):
            alike = [one for one in self.choices if one[1] == has and self.cost(one) * len(self.heads) <= self.most]
            if alike:
                yield (max(alike),) * len(self.heads)


def choose_plan(options: ConvertOptions, original: Original, progress: Progress) -> Choice:
    """Give each layer the heads that it needs, and some the window; the budget holds for all of them together.

    Raises:
        Mha2GqaError: There is no text, no class has layers that differ so, or the budget is too small.
    """
    hosted = HeadsByLayer(heads_of(original.architecture)).host(original)  # refused here, before anything is loaded
    if options.window is not None:
        hosted = Window(options.window, (0,)).host(hosted)
        Window(options.window, (0,)).aim(hosted)
    budget = _Budget.of(options, original)
    known = Text.find(options, hosted)
    if options.window is not None:
        check_beyond(known.blocks.tokens_NT, options.window)
    aside_NT, text_NT = divided(known.blocks.tokens_NT)
    steps = len(budget.heads) * (len(budget.choices) // (1 + bool(budget.window)) - (not budget.window)) + PLANS + 3
    scale = Scale(known.model, aside_NT, progress, steps)
    trial = _Trial(options, original, hosted, known.model, batches(text_NT), progress)
    losses = list(_single_losses(budget, lambda plan: trial.lost(plan, scale)))
    plans = dict.fromkeys([*best_plans(losses, budget.cost, budget.most, PLANS), *budget.uniform()])
    measured = {plan: trial.lost(dict(enumerate(plan)), scale) for plan in plans}
    best = min(measured, key=measured.__getitem__)
    return Choice(
        options=_settled(options, best),
        text=known.blocks.description,
        trials=[scale.trial(_written(plan), loss) for plan, loss in measured.items()],
    )


def _single_losses(budget: _Budget, lost: Callable[[Mapping[int, Kept]], float]) -> Iterator[dict[Kept, float]]:
    """Yield for each layer what it loses alone by each of its choices; both at once as the sum of either."""
    for number in range(len(budget.heads)):
        single = {one: 0.0 if one == budget.whole else lost({number: one}) for one in budget.choices if not one[1]}
        if budget.window:
            bounded = lost({number: (budget.whole[0], True)})
            single |= {(groups, True): loss + bounded for (groups, _), loss in [*single.items()]}
        yield single


def _settled(options: ConvertOptions, plan: Plan) -> ConvertOptions:
    """Return the options with a plan in them; what is alike in all layers as one number, which more classes have."""
    groups = tuple(one for one, _ in plan)
    layers = tuple(number for number, (_, has) in enumerate(plan) if has)
    return replace(
        options,
        groups=groups[0] if len({*groups}) == 1 else groups,
        cache=None,
        window=options.window if layers else None,
        window_layers=write_layers(layers) if 0 < len(layers) < len(plan) else None,
    )


def _written(plan: Plan) -> str:
    """Return a plan as `2,2,4,8` or `2,2,4,8, window on 0-2`."""
    layers = tuple(number for number, (_, has) in enumerate(plan) if has)
    heads = ",".join(str(groups) for groups, _ in plan)
    return f"{heads}, window on {write_layers(layers)}" if layers else heads


class _Trial:
    """The original, in which layers are for a while what fewer KV heads and a window make of them."""

    def __init__(
        self,
        options: ConvertOptions,
        original: Original,
        hosted: Original,
        model: PreTrainedModel,
        batches_BT: Sequence[torch.Tensor],
        progress: Progress,
    ) -> None:
        """Take the original, it in the class that the result has, that one loaded, and text to learn from."""
        heads, source = max(heads_of(original.architecture)), original.architecture
        layers = {one: source.attention_layers(KvHeads(one).moves(source)) for one in divisors(heads) if one < heads}
        merge = LayerMerge(method=options.method, grouping=options.grouping, seed=options.seed)
        statistics = gather_statistics(model, layers[1], batches_BT, progress.part("statistics"))
        self._merges = _Merges(model, merge, layers, statistics)
        self._model, self._hosted, self._window, self._heads = model, hosted, options.window, heads

    def lost(self, plan: Mapping[int, Kept], scale: Scale) -> float:
        """Return what is lost when some layers, by number, keep less."""
        fewer = {number: groups for number, (groups, _) in plan.items() if groups < self._heads}
        bounded = tuple(number for number, (_, has) in plan.items() if has)
        model = self._model
        if bounded and self._window is not None:
            config = Window(self._window, bounded).aim(self._hosted).result.config
            model = build_student(self._model, config, [])  # around the same tensors, in which heads are merged
        with self._merges.installed(fewer):
            return scale(model)


class _Merges:
    """The original, in which attention layers are for a while what fewer KV heads make of them.

    Merged keys and values are repeated for the heads that share them, so that the original's own class computes exactly
    what the converted layer will.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        merge: LayerMerge,
        layers: Mapping[int, Sequence[AttentionLayer]],
        statistics: Mapping[str, Statistics],
    ) -> None:
        """Take the original, how to merge, G -> all layers as they are to become, and what is known of their inputs."""
        self._model, self._merge, self._layers, self._statistics = model, merge, layers, statistics

    @contextmanager
    def installed(self, groups: Mapping[int, int]) -> Iterator[None]:
        """Have some layers, by number, with G heads each as long as the block runs."""
        kept: list[tuple[str, dict[str, torch.Tensor]]] = []
        try:
            for number, wanted in groups.items():
                layer = self._layers[wanted][number]
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


def best_plans(
    losses: Sequence[Mapping[K, float]], cost: Callable[[K], int], budget: int, count: int
) -> list[tuple[K, ...]]:
    """Return the plans whose single losses add up to least, best first: an exact knapsack that keeps several.

    Args:
        losses: Of each layer: what it keeps -> loss of that layer alone.
        cost: What that costs.
        budget: What all layers may cost together.
        count: Plans to return.
    """
    kept: list[tuple[int, float, tuple[K, ...]]] = [(0, 0.0, ())]
    for number, layer in enumerate(losses):
        least = sum(min(map(cost, rest)) for rest in losses[number + 1 :])
        grown = [
            (used + cost(one), total + loss, (*plan, one))
            for used, total, plan in kept
            for one, loss in layer.items()
            if used + cost(one) + least <= budget
        ]
        kept = _undominated(grown, count)
    return [plan for _, _, plan in sorted(kept, key=lambda one: one[1])[:count]]


def _undominated(plans: list[tuple[int, float, K]], count: int) -> list[tuple[int, float, K]]:
    """Return those to which fewer than `count` others are superior, that cost no more and lose less."""
    found: list[tuple[int, float, K]] = []
    best: list[float] = []
    for plan in sorted(plans, key=lambda one: one[:2]):
        if len(best) < count or plan[1] < best[-1]:
            found.append(plan)
            best = sorted([*best, plan[1]])[:count]
    return found
