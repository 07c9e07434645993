"""Which learning rate: the first few steps of a training at each of some, and the loss behind them on text kept aside.

What suits a model follows neither from its width nor from the size of its weights: what a toy learns quickest at (3e-3
of Adam) makes a model of 135M parameters, long trained and twice as wide, worse at every step. So rates are tried from
the same weights, the highest first, each next a quarter, until a rate that gains is followed by one that gains less.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_RATES, _FACTOR = 4, 4
"""Rates that are tried at most, and by what one is smaller than the one before."""
_LEAST_STEPS, _MOST_STEPS, _SHARE = 3, 10, 20
"""Steps at each: one in so many of the training's, within bounds, and no more than it has."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A learning rate that was tried for a few steps."""

    rate: float
    """0 is the start."""
    loss: float
    """On a part of the text kept aside, in nats a token, behind the steps."""


def steps_at_each(steps: int) -> int:
    """Return how many steps of a training of so many are taken at each rate."""
    return min(steps, max(_LEAST_STEPS, min(_MOST_STEPS, steps // _SHARE)))


def try_rates(highest: float, start: float, loss_behind: Callable[[float], float]) -> list[Trial]:
    """Try one rate after the other.

    Args:
        highest: The first of them.
        start: The loss before any step.
        loss_behind: Takes a few steps at a rate, from the same weights, and gives the loss behind them.

    Returns:
        The start, with a rate of 0, and what was tried.
    """
    trials = [Trial(rate=0.0, loss=start)]
    for number in range(MOST_RATES):
        rate = highest / _FACTOR**number
        trials.append(Trial(rate=rate, loss=loss_behind(rate)))
        if trials[-2].loss < start and trials[-1].loss >= trials[-2].loss and number:
            break
    return trials


def best_rate(trials: Sequence[Trial]) -> float:
    """Return the rate that lost least, of those that were tried."""
    return min(trials[1:], key=lambda one: one.loss).rate
