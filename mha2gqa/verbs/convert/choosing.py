"""What text decides before a conversion is planned: how many KV heads each layer keeps, and which layers get a window.

    --groups auto --cache 25%                     heads by layer, under a budget (`budget.py`)
    --groups auto --cache 15% --window W          heads by layer, and which layers have the window, under one budget
    --window W --window-layers auto               layers with a window, under a limit of perplexity (here)

All go the same way: each layer is changed alone and its loss measured on text; these losses nearly add up, so that
they lead to a few plans, and those are measured whole. A spectrum of the weights is no guide: what it allocates helps
at 25 % of the cache and hurts at 50 % (arXiv 2603.17946).

Legend: W tokens of the window.
"""

import math
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.methods import AUTO
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.refine.student import build_student
from mha2gqa.targets.window import Window, windows, write_layers
from mha2gqa.verbs.convert.budget import choose_plan
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.reading import Text, check_text
from mha2gqa.verbs.convert.scale import PLANS, Choice, Scale, check_beyond, divided, settled


def choose(options: ConvertOptions, original: Original, progress: Progress) -> Choice:
    """Choose what was left to text.

    Raises:
        Mha2GqaError: There is no text, or the model cannot have what was asked for.
    """
    if options.groups == AUTO:
        return choose_plan(options, original, progress)
    return _choose_layers(options, original, progress)


def _choose_layers(options: ConvertOptions, original: Original, progress: Progress) -> Choice:
    """Give the window to as many layers as the limit of the perplexity allows, those that lose least first."""
    tokens = options.window or 0
    hosted = Window(tokens, (0,)).host(original)
    check_text(options, hosted, "--window-layers auto")
    known = Text.find(options, hosted)
    check_beyond(known.blocks.tokens_NT, tokens)
    aside_NT, _ = divided(known.blocks.tokens_NT)
    count = len(windows(hosted.architecture))
    scale = Scale(options, known.model, aside_NT, progress, count + PLANS)

    def bounded(layers: Sequence[int]) -> PreTrainedModel:
        result = Window(tokens, tuple(sorted(layers))).aim(hosted).result
        return build_student(known.model, result.config, [])

    single: dict[int, float] = {}
    for number, module in enumerate(hosted.architecture.attention_modules):
        scale.reach(module)
        single[number] = scale.behind(bounded([number]))
    order = sorted(single, key=single.__getitem__)
    limit = math.log1p(options.max_ppl_increase)
    measured = longest_within(
        lambda number: scale(bounded(order[:number])), [single[number] for number in order], limit
    )
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
    return Choice(
        options=settled(options, window_layers=layers),
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
