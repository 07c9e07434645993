"""How a cache of so many numbers a token may be divided: R for the shared rotary key, the rest for the latent.

The fit's own objective cannot say which R is best, it favours too many; a few are tried on text kept aside
(`refine/latent/choice.py`). Measured best shares of R: 3/8 where the cache is half or a quarter of that of MHA, 1/4
where it is an eighth; an eighth to a quarter for sources that are GQA.
"""

from mha2gqa.errors import GroupsError

_SHARES = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
"""Of the cache, for the rotary key."""
_STEP = 4
"""Widths are multiples of it, where the cache is large enough."""


def rotary_widths(cache: int) -> list[int]:
    """Return the widths R of the rotary key that are worth trying, least first.

    Args:
        cache: C + R: numbers a token and layer.

    Raises:
        GroupsError: The cache cannot be divided.
    """
    if cache < 4 or cache % 2:
        raise GroupsError(f"A cache of {cache} numbers cannot be divided", expected="an even number from 4 on")
    step = _STEP if cache >= 8 * _STEP else 2
    widths = {max(step, round(cache * share / step) * step) for share in _SHARES}
    return sorted(width for width in widths if width < cache)


def like_groups(groups: int, width: int, value_width: int) -> int:
    """Return the numbers a token and layer that G KV heads cache.

    Args:
        groups: G.
        width: E, of a key.
        value_width: F, of a value.
    """
    return groups * (width + value_width)
