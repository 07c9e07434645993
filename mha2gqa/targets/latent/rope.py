"""Speeds of the shared rotary key's planes, and how the host's config says them.

*Free.* `longrope` divides each plane's plain speed by a factor of its own, so any speeds can be had, one of them
several times as well. transformers alone takes it here: engines turn another scaling than yarn into yarn, or refuse it.

*Portable.* Plain rope of n planes has the speeds b^(-i/n): any geometric ladder that begins at 1 radian a token. With
b = θ^(span/P) it runs over the fastest `span` of the source's P planes, in n steps: with span = n these are the
source's own fastest planes, with a smaller span a finer ladder, whose neighbours serve as several keys of one plane.
`yarn` with a sharp ramp and a factor below 1 multiplies the slow half of a plain ladder so that it repeats the fast
half: the same planes, or the same finer ladder, twice.

A key has a name that says all of it, to those who know its source and width: `ladder:24`, `twice:12`, `planes:0,0,1,5`.

Legend: P planes of a head of the source, n planes of the shared key.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from mha2gqa.heads.attention import Rotary
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.planes import best_planes

_SPANS = (1.0, 0.75, 0.5, 0.35, 0.25)
"""Spans of ladders that are tried, in multiples of their planes. Narrow heads want the fastest few planes many times: a
verse model with heads of 16 loses .116 nats at half its cache with spans from 0.5 on, and .013 with free speeds."""
_LADDER, _TWICE, _PLANES = "ladder", "twice", "planes"
"""Kinds of keys, as their names begin."""


def free_key(rotary: Rotary, gains: Sequence[torch.Tensor], planes: int, *, theta: float, context: int) -> RotaryKey:
    """Return a key that holds the planes that are worth the most.

    Args:
        rotary: Of the source's layers that rotate.
        gains: `plane_gains` of each.
        planes: How many; fewer where there are no more.
        theta: Any base of plain speeds.
        context: Tokens that the model was trained on.
    """
    return planes_key(rotary, [plane for plane, _ in best_planes(gains, planes)], theta=theta, context=context)


def planes_key(rotary: Rotary, planes: Sequence[int], *, theta: float, context: int) -> RotaryKey:
    """Return a key of these planes of the source, in their order; one that comes again is a further key of it."""
    taken: Counter[int] = Counter()
    begins = []
    for plane in planes:
        begins.append((plane, taken[plane]))
        taken[plane] += 1
    speeds = tuple(rotary.frequencies[plane] for plane in planes)
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
    return RotaryKey(speeds, tuple(begins), parameters, f"{_PLANES}:{','.join(map(str, planes))}")


def named_key(name: str, rotary: Rotary, planes: int, *, theta: float, context: int) -> RotaryKey:
    """Return the key of a name.

    Args:
        name: As `RotaryKey.name` has it.
        rotary: Of the source's layers that rotate.
        planes: How many the key has.
        theta: Any base of plain speeds.
        context: Tokens that the model was trained on.

    Raises:
        ValueError: There is no such key.
    """
    kind, _, numbers = name.partition(":")
    known = len(rotary.frequencies)
    given = [int(number) for number in numbers.split(",")] if numbers else []
    if kind == _LADDER and len(given) == 1 and 1 <= given[0] <= known:
        return ladder_key(rotary, planes, given[0])
    if kind == _TWICE and len(given) == 1 and 1 <= given[0] <= known and planes % 2 == 0:
        return repeated_key(rotary, planes, given[0], context=context)
    if kind == _PLANES and len(given) == planes and all(0 <= plane < known for plane in given):
        return planes_key(rotary, given, theta=theta, context=context)
    raise ValueError(f"{name!r} is no rotary key of {planes} planes, of {known} of the source")


def portable_keys(rotary: Rotary, planes: int, *, context: int) -> Iterator[RotaryKey]:
    """Yield keys of speeds that every engine knows: ladders of several spans, and ladders of half as many planes twice.

    Args:
        rotary: Of the source's layers that rotate.
        planes: n.
        context: Tokens that the model was trained on.
    """
    for span in _spans(rotary, planes):
        yield ladder_key(rotary, planes, span)
    if planes % 2 == 0 and _step(rotary) > 1:
        for span in _spans(rotary, planes // 2):
            yield repeated_key(rotary, planes, span, context=context)


def _spans(rotary: Rotary, planes: int) -> list[int]:
    known = len(rotary.frequencies)
    return list(dict.fromkeys(min(known, max(1, round(planes * share))) for share in _SPANS))


def ladder_key(rotary: Rotary, planes: int, span: int) -> RotaryKey:
    """Return a plain ladder of n planes over the fastest `span` planes of the source."""
    base = _step(rotary) ** span
    speeds = _ladder(base, planes)
    parameters = {"rope_type": "default", "rope_theta": base}
    return RotaryKey(speeds, _nearest(rotary, speeds), parameters, f"{_LADDER}:{span}")


def repeated_key(rotary: Rotary, planes: int, span: int, *, context: int) -> RotaryKey:
    """Return a ladder of n/2 planes over the fastest `span` planes of the source, each plane twice.

    A plain ladder of n planes over twice the span has planes i and i + n/2 apart by step^span: yarn divides those from
    n/2 on by a factor of step^(-span). Its ramp between planes that are left and planes that are divided
    is given by numbers of turns within the original context: it begins at `turns(n/2 - 1/2)` and ends there, and is
    cut off at whole planes, so that it is a step. That context says no more; it is so long that the factor makes the
    model's of it, for vLLM has as many positions.
    """
    half, apart = planes // 2, _step(rotary) ** span
    base, original = apart**2, math.ceil(context * apart)
    # Turns of plane x within a context: context / (2π base^(x/n)).
    turns = original / (2 * math.pi) / base ** ((half - 0.5) / planes)
    parameters = {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": 1 / apart,
        "beta_fast": turns,
        "beta_slow": turns,
        "attention_factor": 1.0,
        "original_max_position_embeddings": original,
        "truncate": True,
    }
    speeds = _ladder(apart, half) * 2
    return RotaryKey(speeds, _nearest(rotary, speeds), parameters, f"{_TWICE}:{span}")


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
