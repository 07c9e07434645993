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
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

from mha2gqa.errors import GroupsError
from mha2gqa.heads.grouping import divisors
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.targets.by_layer import HeadsByLayer, heads_of
from mha2gqa.targets.window import Window, write_layers
from mha2gqa.verbs.convert.layerwise import batches
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.reading import Text, check_text
from mha2gqa.verbs.convert.scale import PLANS, Choice, Scale, check_beyond, divided, settled
from mha2gqa.verbs.convert.standin import Standin

Kept: TypeAlias = tuple[int, bool]
"""What a layer keeps: G, and whether of the window's tokens alone."""
Division: TypeAlias = tuple[Kept, ...]
One = TypeVar("One", bound=Hashable)
_HALF = 0.5
"""Share of the cache that is kept, unless another is asked for."""


@dataclass(frozen=True)
class _Budget:
    """What a layer may keep, and what it costs: tokens times KV heads, of a text as long as the model reads."""

    heads: tuple[int, ...]
    """K of each layer; they may differ."""
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
        least = sum(min(map(found.cost, found.choices(number))) for number in range(len(found.heads)))
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

    def choices(self, number: int) -> list[Kept]:
        """Return what a layer may keep; last without the window what it keeps now."""
        return [
            (groups, has) for has in (False, True)[: 1 + bool(self.window)] for groups in divisors(self.heads[number])
        ]

    @property
    def measured(self) -> int:
        """Single losses that have to be measured."""
        return sum(len(divisors(heads)) - 1 + bool(self.window) for heads in self.heads)

    def cost(self, kept: Kept) -> int:
        """Return what a layer costs."""
        groups, has_window = kept
        return groups * (min(self.window or self.length, self.length) if has_window else self.length)

    def uniform(self) -> Iterator[Division]:
        """Yield the plans whose layers are alike, the largest that fit with and without the window."""
        for has in (False, True)[: 1 + bool(self.window)]:
            plans = [
                tuple((max(one for one in divisors(heads) if one <= groups), has) for heads in self.heads)
                for groups in divisors(max(self.heads))
            ]
            if fitting := [plan for plan in plans if sum(map(self.cost, plan)) <= self.most]:
                yield fitting[-1]


def check_budget(options: ConvertOptions, original: Original) -> None:
    """Refuse a budget under which not every layer can keep a head.

    Raises:
        GroupsError: It is too small.
    """
    _Budget.of(options, original)


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
    check_text(options, hosted, "--groups auto")
    known = Text.find(options, hosted)
    if options.window is not None:
        check_beyond(known.blocks.tokens_NT, options.window)
    aside_NT, text_NT = divided(known.blocks.tokens_NT)
    scale = Scale(options, known.model, aside_NT, progress, budget.measured + PLANS + 2)
    standin = Standin(options, original, hosted, known.model, batches(text_NT), progress)
    losses: list[dict[Kept, float]] = []
    for number, module in enumerate(hosted.architecture.attention_modules):
        scale.reach(module)
        choices = budget.choices(number)
        losses.append(_single_losses(choices, partial(_lost_alone, standin, scale, number)))
    plans = dict.fromkeys([*best_plans(losses, budget.cost, budget.most, PLANS), *budget.uniform()])
    measured = {plan: standin.lost(dict(enumerate(plan)), scale) for plan in plans}
    best = min(measured, key=measured.__getitem__)
    return Choice(
        options=_settled(options, best),
        text=known.blocks.description,
        trials=[scale.trial(_written(plan), loss) for plan, loss in measured.items()],
    )


def _lost_alone(standin: Standin, scale: Scale, number: int, kept: Kept) -> float:
    return standin.lost({number: kept}, scale.behind)


def _single_losses(choices: Sequence[Kept], lost: Callable[[Kept], float]) -> dict[Kept, float]:
    """Return what a layer loses alone by each of its choices; both at once as the sum of either."""
    whole = max(groups for groups, _ in choices)
    single = {one: 0.0 if one[0] == whole else lost(one) for one in choices if not one[1]}
    if (whole, True) in choices:
        bounded = lost((whole, True))
        single |= {(groups, True): loss + bounded for (groups, _), loss in [*single.items()]}
    return single


def _settled(options: ConvertOptions, plan: Division) -> ConvertOptions:
    """Return the options with a plan in them; what is alike in all layers as one number, which more classes have."""
    groups = tuple(one for one, _ in plan)
    layers = tuple(number for number, (_, has) in enumerate(plan) if has)
    return settled(
        options,
        groups=groups[0] if len({*groups}) == 1 else groups,
        cache=None,
        window=options.window if layers else None,
        window_layers=write_layers(layers) if 0 < len(layers) < len(plan) else None,
    )


def _written(plan: Division) -> str:
    """Return a plan as `2,2,4,8` or `2,2,4,8, window on 0-2`."""
    layers = tuple(number for number, (_, has) in enumerate(plan) if has)
    heads = ",".join(str(groups) for groups, _ in plan)
    return f"{heads}, window on {write_layers(layers)}" if layers else heads


def best_plans(
    losses: Sequence[Mapping[One, float]], cost: Callable[[One], int], budget: int, count: int
) -> list[tuple[One, ...]]:
    """Return the plans whose single losses add up to least, best first: an exact knapsack that keeps several.

    Args:
        losses: Of each layer: what it keeps -> loss of that layer alone.
        cost: What that costs.
        budget: What all layers may cost together.
        count: Plans to return.
    """
    kept: list[tuple[int, float, tuple[One, ...]]] = [(0, 0.0, ())]
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


def _undominated(plans: list[tuple[int, float, One]], count: int) -> list[tuple[int, float, One]]:
    """Return those to which fewer than `count` others are superior, that cost no more and lose less."""
    found: list[tuple[int, float, One]] = []
    best: list[float] = []
    for plan in sorted(plans, key=lambda one: one[:2]):
        if len(best) < count or plan[1] < best[-1]:
            found.append(plan)
            best = sorted([*best, plan[1]])[:count]
    return found
