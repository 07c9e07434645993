"""Lets two models take turns at every point of a grid, so that both meet the same disturbances.

Which of them goes first changes from turn to turn. The first turn of each is not counted. Knows no engine and no
model: only what `engine.py` asks of them.
"""

from collections.abc import Callable
from dataclasses import replace

from mha2gqa.verbs.bench.engine import Engine, Filled
from mha2gqa.verbs.bench.limits import Costs
from mha2gqa.verbs.bench.outcome import Decode, Prefill, Ratio, Times

Reason = Callable[[Decode], str]
Turn = Callable[[], list[float]]


def take_turns(first: Turn, second: Turn, turns: int) -> tuple[Times, Times, Ratio]:
    """Return the times of both, and the ratio of first through second, turn by turn.

    Args:
        first: Returns the times of one turn.
        second: The other's.
        turns: How many turns of each count; one more comes before them.
    """
    both = (first, second)
    for turn in both:
        turn()
    times: tuple[list[float], list[float]] = ([], [])
    ratios = []
    for number in range(turns):
        medians = [0.0, 0.0]
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            seconds = both[index]()
            times[index].extend(seconds)
            medians[index] = Times.of(seconds).median
        ratios.append(medians[0] / medians[1])
    middle = Times.of(ratios).median
    return Times.of(times[0]), Times.of(times[1]), Ratio(median=middle, low=min(ratios), high=max(ratios))


def time_decode(
    engines: tuple[Engine, Engine],
    sides: tuple[Costs, Costs],
    point: tuple[str, int, Filled],
    *,
    room: int,
    tokens: int,
    turns: int,
    reason: Reason,
) -> Decode:
    """Measure decoding at one point.

    Args:
        engines: Original and converted.
        sides: Their bytes.
        point: Kind of cache, batch, and what its caches hold when decoding begins.
        room: Tokens that a cache needs beyond that.
        tokens: Steps of a turn.
        turns: Turns of each that count.
        reason: Returns why a row is not faster, as `why_not_faster`.
    """
    kind, batch, filled = point
    first, second = (engine.start(batch, filled, kind, room) for engine in engines)
    held = filled.with_room(room if kind == "static" else 0)
    original, converted, ratio = take_turns(lambda: first.turn(tokens), lambda: second.turn(tokens), turns)
    row = Decode(
        batch=batch,
        context=filled.context,
        cache=kind,
        original=original,
        converted=converted,
        ratio=ratio,
        step_bytes=(sides[0].step(batch, filled), sides[1].step(batch, filled)),
        cache_bytes=(batch * sides[0].cache(held), batch * sides[1].cache(held)),
        cache_measured=(first.cache_bytes, second.cache_bytes),
    )
    return replace(row, reason=reason(row))


def time_prefill(engines: tuple[Engine, Engine], batch: int, tokens: int, turns: int) -> Prefill:
    """Measure reading a batch of prompts, or of sources, of `tokens` tokens."""
    first, second = engines
    original, converted, ratio = take_turns(
        lambda: [first.prefill(batch, tokens)], lambda: [second.prefill(batch, tokens)], turns
    )
    return Prefill(batch=batch, tokens=tokens, original=original, converted=converted, ratio=ratio)
