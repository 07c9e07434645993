"""Speeds of the shared rotary key's planes, and how the host's config says them.

*Free.* `longrope` divides each plane's plain speed by a factor of its own, so any speeds can be had, one of them
several times as well. transformers alone takes it here: engines turn another scaling than yarn into yarn, or refuse it.

*Portable.* Plain rope of n planes has the speeds b^(-i/n): any geometric ladder that begins at 1 radian a token. With
b = θ^(span/P) it runs over the fastest `span` of the source's P planes, in n steps: with span = n these are the
source's own fastest planes, with a smaller span a finer ladder, whose neighbours serve as several keys of one plane.
`yarn` with a sharp ramp and a factor below 1 multiplies the slow half of a plain ladder so that it repeats the fast
half: the same planes twice.

Legend: P planes of a head of the source, n planes of the shared key.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from mha2gqa.heads.attention import Rotary
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.planes import best_planes

_SPANS = (1.0, 0.75, 0.5)
"""Spans of ladders that are tried, in multiples of n."""


def free_key(rotary: Rotary, gains: Sequence[torch.Tensor], planes: int, *, theta: float, context: int) -> RotaryKey:
    """Return a key that holds the planes that are worth the most.

    Args:
        rotary: Of the source's layers that rotate.
        gains: `plane_gains` of each.
        planes: How many; fewer where there are no more.
        theta: Any base of plain speeds.
        context: Tokens that the model was trained on.
    """
    begins = best_planes(gains, planes)
    speeds = tuple(rotary.frequencies[plane] for plane, _ in begins)
    plain = _ladder(theta, len(speeds))
    # A plane that stands still has a speed so small that no context tells.
    factors = [one / max(speed, 1e-30) for one, speed in zip(plain, speeds, strict=True)]
    parameters = {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
    return RotaryKey(speeds, begins, parameters, "free")


def portable_keys(rotary: Rotary, planes: int, *, context: int) -> Iterator[RotaryKey]:
    """Yield keys of speeds that every engine knows: ladders of several spans, and the fastest planes twice.

    Args:
        rotary: Of the source's layers that rotate.
        planes: n.
        context: Tokens that the model was trained on.
    """
    spans = dict.fromkeys(min(len(rotary.frequencies), max(1, round(planes * share))) for share in _SPANS)
    for span in spans:
        yield ladder_key(rotary, planes, span)
    if planes % 2 == 0 and planes // 2 <= len(rotary.frequencies) and _step(rotary) > 1:
        yield repeated_key(rotary, planes, context=context)


def ladder_key(rotary: Rotary, planes: int, span: int) -> RotaryKey:
    """Return a plain ladder of n planes over the fastest `span` planes of the source."""
    base = _step(rotary) ** span
    speeds = _ladder(base, planes)
    parameters = {"rope_type": "default", "rope_theta": base}
    return RotaryKey(speeds, _nearest(rotary, speeds), parameters, f"ladder over {span} planes")


def repeated_key(rotary: Rotary, planes: int, *, context: int) -> RotaryKey:
    """Return the fastest n/2 planes of the source, each twice.

    A plain ladder of n planes at the source's own steps has planes i and i + n/2 apart by step^(n/2): yarn divides
    those from n/2 on by a factor of step^(-n/2). Its ramp between planes that are left and planes that are divided
    is given by numbers of turns within the context: it begins at `turns(n/2 - 1/2)` and ends there, and is cut off
    at whole planes, so that it is a step.
    """
    half, step = planes // 2, _step(rotary)
    base = step**planes
    # Turns of plane x within a context: context / (2π base^(x/n)).
    turns = context / (2 * math.pi) / base ** ((half - 0.5) / planes)
    parameters = {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": step**-half,
        "beta_fast": turns,
        "beta_slow": turns,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
        "truncate": True,
    }
    speeds = _ladder(step**half, half) * 2
    return RotaryKey(speeds, _nearest(rotary, speeds), parameters, f"{half} planes twice")


def _ladder(base: float, planes: int) -> tuple[float, ...]:
    """Return the speeds of plain rope."""
    return tuple(base ** -(plane / planes) for plane in range(planes))


def _step(rotary: Rotary) -> float:
    """Return how much faster a plane of the source turns than its neighbour, at its fast end."""
    speeds = rotary.frequencies
    if len(speeds) < 2:
        return 1.0
    return speeds[0] / speeds[1]


def _nearest(rotary: Rotary, speeds: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Return the source's plane that is nearest to each speed, and how many planes before have taken it already."""
    taken: Counter[int] = Counter()
    begins = []
    known = [math.log(max(speed, 1e-30)) for speed in rotary.frequencies]
    for speed in speeds:
        plane = min(range(len(known)), key=lambda place: abs(known[place] - math.log(speed)))
        begins.append((plane, taken[plane]))
        taken[plane] += 1
    return tuple(begins)
