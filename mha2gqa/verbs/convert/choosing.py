"""What text decides before a conversion is planned: how many KV heads each layer keeps, and which layers get a window.

    --groups auto --cache 25%                     heads by layer, under a budget
    --window W --window-layers auto               layers with a window, under a limit of perplexity

Both go the same way: each layer is changed alone and its loss measured on text; these losses nearly add up, so that
they lead to a few plans, and those are measured whole. A spectrum of the weights is no guide: what it allocates helps
at 25 % of the cache and hurts at 50 % (arXiv 2603.17946).

Legend: G KV heads of a layer of the result, K of the source, L layers, W tokens of the window.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError, GroupsError
from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.heads.grouping import divisors
from mha2gqa.methods import AUTO
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.refine.student import build_student, install, own_tensors
from mha2gqa.targets.by_layer import HeadsByLayer, heads_of
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.window import Window, windows, write_layers
from mha2gqa.texts.blocks import mean_loss
from mha2gqa.verbs.convert.conversion import Text
from mha2gqa.verbs.convert.layerwise import batches
from mha2gqa.verbs.convert.options import ConvertOptions

_MEASURED = 16_384
"""Tokens to measure on, where there are twice as many: on 2,048 a gain was seen that other text did not show."""
_HALF = 0.5
"""Share of the cache that is kept, unless another is asked for."""
_PLANS = 4
"""Plans that are measured whole, besides the uniform one."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and what was tried."""

    options: ConvertOptions
    """Those that were asked for, with the choice in them."""
    text: str
    trials: list[dict[str, object]]

    def told(self) -> dict[str, object]:
        """Return what the outcome keeps of it."""
        return {"text": self.text, "trials": self.trials}


def choose(options: ConvertOptions, original: Original, progress: Progress) -> Choice:
    """Choose what was left to text.

    Raises:
        Mha2GqaError: There is no text, or the model cannot have what was asked for.
    """
    if options.groups == AUTO:
        return _choose_heads(options, original, progress)
    return _choose_layers(options, original, progress)


class _Scale:
    """Measures models on the same text, as losses above the original's."""

    def __init__(self, original: PreTrainedModel, blocks_NT: torch.Tensor, progress: Progress, total: int) -> None:
        self._batches = batches(blocks_NT)
        self._progress, self._total = progress, total
        self._original = mean_loss(original, self._batches)

    def __call__(self, model: PreTrainedModel) -> float:
        """Return how much more a model loses than the original, in nats a token."""
        self._progress.stage("choosing", 1, self._total)
        return mean_loss(model, self._batches) - self._original

    def trial(self, way: str, loss: float) -> dict[str, object]:
        """Return what is told of a plan that was measured whole."""
        return {"way": way, "refine": None, "loss": self._original + loss, "increase": math.expm1(loss)}


def _divided(blocks_NT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return blocks to measure on, evenly spaced, and the others."""
    count = min(len(blocks_NT) // 2, math.ceil(_MEASURED / blocks_NT.shape[1]))
    aside = torch.zeros(len(blocks_NT), dtype=torch.bool)
    aside[[number * len(blocks_NT) // count for number in range(count)]] = True
    return blocks_NT[aside], blocks_NT[~aside]


def _choose_heads(options: ConvertOptions, original: Original, progress: Progress) -> Choice:
    """Give each layer the heads that it needs; the budget holds for all of them together."""
    model, share = original.architecture, _HALF if options.cache is None else options.cache
    HeadsByLayer(heads_of(model)).host(original)  # refused here, before anything is loaded
    heads = max(heads_of(model))
    smaller = [groups for groups in divisors(heads) if groups < heads]
    budget = math.floor(share * sum(heads_of(model)) + 1e-9)
    if budget < len(heads_of(model)):
        raise GroupsError(
            f"--cache {share:.1%} leaves less than one KV head a layer, of {heads}",
            expected=f"{1 / heads:.1%} or more",
        )
    known, count = Text.find(options, original), len(heads_of(model))
    aside_NT, text_NT = _divided(known.blocks.tokens_NT)
    layers = {groups: model.attention_layers(KvHeads(groups).moves(model)) for groups in smaller}
    merge = LayerMerge(method=options.method, grouping=options.grouping, seed=options.seed)
    statistics = gather_statistics(known.model, layers[1], batches(text_NT), progress.part("statistics"))
    trial = _Merges(known.model, merge, layers, statistics)
    scale = _Scale(known.model, aside_NT, progress, count * len(smaller) + _PLANS + 1)
    losses: list[dict[int, float]] = []
    for number in range(count):
        losses.append({heads: 0.0})
        for groups in smaller:
            with trial.installed({number: groups}):
                losses[number][groups] = scale(known.model)
    uniform = max(groups for groups in divisors(heads) if groups * count <= budget)
    plans = [*dict.fromkeys([*best_plans(losses, budget, _PLANS), (uniform,) * count])]
    measured: dict[tuple[int, ...], float] = {}
    for plan in plans:
        with trial.installed({number: groups for number, groups in enumerate(plan) if groups < heads}):
            measured[plan] = scale(known.model)
    best = min(plans, key=measured.__getitem__)
    return Choice(
        options=replace(options, groups=best, cache=None),
        text=known.blocks.description,
        trials=[scale.trial(",".join(map(str, plan)), measured[plan]) for plan in plans],
    )


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


def best_plans(losses: Sequence[Mapping[int, float]], budget: int, count: int) -> list[tuple[int, ...]]:
    """Return the plans whose single losses add up to least, best first: an exact knapsack that keeps several.

    Args:
        losses: Of each layer: G -> loss of that layer alone.
        budget: KV heads that all layers may have together.
        count: Plans to return.
    """
    kept: dict[int, list[tuple[float, tuple[int, ...]]]] = {0: [(0.0, ())]}
    for number, layer in enumerate(losses):
        least = sum(min(rest) for rest in losses[number + 1 :])
        grown: dict[int, list[tuple[float, tuple[int, ...]]]] = {}
        for used, plans in kept.items():
            for groups, loss in layer.items():
                if used + groups + least <= budget:
                    more = ((total + loss, (*plan, groups)) for total, plan in plans)
                    grown.setdefault(used + groups, []).extend(more)
        kept = {used: sorted(plans)[:count] for used, plans in grown.items()}
    found = sorted(plan for plans in kept.values() for plan in plans)
    return [plan for _, plan in found[:count]]


def _choose_layers(options: ConvertOptions, original: Original, progress: Progress) -> Choice:
    """Give the window to as many layers as the limit of the perplexity allows, those that lose least first."""
    tokens = options.window or 0
    hosted = Window(tokens, (0,)).host(original)
    known = Text.find(options, hosted)
    if known.blocks.tokens_NT.shape[1] <= tokens:
        raise CalibrationError(
            f"Blocks of {known.blocks.tokens_NT.shape[1]} tokens end within the window of {tokens}",
            expected="text and a --context that reach beyond it",
        )
    aside_NT, _ = _divided(known.blocks.tokens_NT)
    count = len(windows(hosted.architecture))
    scale = _Scale(known.model, aside_NT, progress, count + _PLANS)

    def lost(layers: Sequence[int]) -> float:
        result = Window(tokens, tuple(sorted(layers))).aim(hosted).result
        return scale(build_student(known.model, result.config, []))

    single = {number: lost([number]) for number in range(count)}
    order = sorted(single, key=single.__getitem__)
    limit = math.log1p(options.max_ppl_increase)
    measured = longest_within(lambda number: lost(order[:number]), [single[number] for number in order], limit)
    within = [number for number, loss in measured.items() if loss <= limit]
    if not within:
        raise CalibrationError(
            f"A window of {tokens} tokens on layer {order[0]} alone raises the perplexity by "
            f"{math.expm1(single[order[0]]):.2%}, and on every other by more",
            expected=f"at most {options.max_ppl_increase:.2%}, by --max-ppl-increase",
            remedy="Give a longer window",
        )
    best = tuple(sorted(order[: max(within)]))
    layers = None if len(best) == count else write_layers(best)
    data = options.data if options.groups is not None else ()  # a window alone reads no text any more
    return Choice(
        options=replace(options, window_layers=layers, data=data),
        text=known.blocks.description,
        trials=[
            scale.trial(f"layers {write_layers(tuple(sorted(order[:number])))}", loss)
            for number, loss in measured.items()
        ],
    )


def longest_within(lost: Callable[[int], float], single: Sequence[float], limit: float) -> dict[int, float]:
    """Measure how many of the first layers lose no more than a limit together.

    Args:
        lost: Measures the loss of the first so many layers.
        single: What each of them loses alone, least first.
        limit: In nats a token.

    Returns:
        Number of layers -> loss, of all that were measured: from where the sum of single losses ends, upwards as long
        as it holds, else downwards until it does.
    """
    number = max(1, sum(sum(single[: place + 1]) <= limit for place in range(len(single))))
    measured = {number: lost(number)}
    step = 1 if measured[number] <= limit else -1
    while 1 <= number + step <= len(single):
        number += step
        measured[number] = lost(number)
        if (measured[number] <= limit) != (step > 0):
            break
    return measured
