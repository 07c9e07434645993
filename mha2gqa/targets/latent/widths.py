"""Widths that are asked for, and how a cache may be divided: R for the shared rotary key, the rest for the latent.

The fit's own objective cannot say which R is best, it favours too many; a few are tried on text kept aside
(`refine/latent/choice.py`). Measured best shares of R: 3/8 where the cache is half or a quarter of that of MHA, 1/4
where it is an eighth; an eighth to a quarter for sources that are GQA.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mha2gqa.errors import GroupsError
from mha2gqa.targets.target import Change, Fact

CHOSEN = ("portable", "free")
"""Speeds of the rotary key that are chosen by text; any other are the name of a key (`rope.named_key`)."""

KERNELS = (576, 320)
"""C + R that the MLA kernels of vLLM take, by their sources; 512 + 64 is DeepSeek's."""
_SHARES = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
"""Of the cache, for the rotary key."""
_STEP = 4
"""Widths are multiples of it, where the cache is large enough."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What was asked for: C and R, or the cache of G KV heads; and the speeds of the rotary key."""

    latent: int | None = None
    """C."""
    rope_width: int | None = None
    """R."""
    groups: int | None = None
    """G, in the place of C and R."""
    frequencies: str = CHOSEN[0]

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left for text to choose."""
        return None not in (self.latent, self.rope_width) and self.frequencies not in CHOSEN


def rotary_widths(cache: int) -> list[int]:
    """Return the widths R of the rotary key that are worth trying, least first.

    Args:
        cache: C + R: numbers a token and layer.

    Raises:
        GroupsError: The cache cannot be divided.
    """
    if cache < 4 or cache % 2:
        raise GroupsError(f"A cache of {cache} numbers cannot be divided", expected="an even number from 4 on")
    return [width for width in _rounded((cache * share for share in _SHARES), cache) if width < cache]


def rotary_widths_beside(latent: int) -> list[int]:
    """Return the same for a latent of a width, to which they are added."""
    return _rounded((latent * share / (1 - share) for share in _SHARES), latent)


def _rounded(widths: Iterable[float], cache: int) -> list[int]:
    step = _STEP if cache >= 8 * _STEP else 2
    return sorted({max(step, round(width / step) * step) for width in widths})


def like_groups(groups: int, width: int, value_width: int) -> int:
    """Return the numbers a token and layer that G KV heads cache.

    Args:
        groups: G.
        width: E, of a key.
        value_width: F, of a value.
    """
    return groups * (width + value_width)


@dataclass(frozen=True)
class Whole:
    """What a model caches for a token in a layer; the most, where layers differ."""

    kv_heads: int
    width: int
    """E, of a key."""
    value_width: int
    """F, of a value."""
    rotary: int
    """Rows of a key that are rotated."""

    @property
    def numbers(self) -> int:
        """All of it."""
        return like_groups(self.kv_heads, self.width, self.value_width)


def divisions(whole: Whole, target: Widths) -> list[tuple[int, int]]:
    """Return C and R of everything that a target leaves to text, least R first; one where it leaves nothing.

    Raises:
        GroupsError: None of them can be.
    """
    if target.groups is not None and target.groups > whole.kv_heads:
        raise GroupsError(
            f"--latent-like-groups {target.groups} is the cache of more than the model's {whole.kv_heads} KV heads",
            expected=f"1 to {whole.kv_heads}",
        )
    if target.groups is not None:
        cache = like_groups(target.groups, whole.width, whole.value_width)
        found = [(cache - width, width) for width in rotary_widths(cache)]
    else:
        latent = int(target.latent or 0)
        widths = rotary_widths_beside(latent) if target.rope_width is None else [target.rope_width]
        found = [(latent, width) for width in widths]
    most = whole.rotary * whole.kv_heads
    possible = [
        one for one in found if min(one) >= 2 and not any(part % 2 for part in one) and sum(one) <= whole.numbers
    ]
    if not possible:
        latent, width = found[0]
        raise GroupsError(
            f"A latent of {latent} and a rotary key of {width} cannot be the cache of this model",
            expected=f"even numbers from 2 on, together at most the {whole.numbers:,} that it caches a token and layer "
            "now",
        )
    return [one for one in possible if one[1] <= most] or possible[:1]


def latent_change(cached: int, latent: int, rope_width: int) -> Change:
    """Return the change of a model that caches so many numbers a token and layer."""
    return Change(
        facts=(
            Fact(name="cached", label="numbers cached a token and layer", before=cached, after=latent + rope_width),
            Fact(name="latent", label="latent width", before=None, after=latent),
            Fact(name="rope_width", label="rotary key width", before=None, after=rope_width),
        ),
        effect="loss",
        tags=("mla",),
        made="Keys and values were fitted by a latent that all heads share, and by a rotary key that they share",
        lacks="keeps no latent vector",
    )
