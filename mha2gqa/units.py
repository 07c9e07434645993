"""Numbers as people write and read them: `256K` tokens, `5GB`, `1%`, `1.8 GiB`; and a loss as they compare it."""

import math
import re

from mha2gqa.errors import OutputError

_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMBT]?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MOST = 10**15
"""Of what is counted in numbers; the longest pre-trainings have a thirtieth of that."""


def parse_count(text: str) -> int:
    """Return a whole number, 1 or more, up to 1000T: `20M`, `2T`, `1.5e9`, `4096`.

    Raises:
        ValueError: It is none.
    """
    match = _COUNT.fullmatch(text.strip().replace(",", "").replace("_", ""))
    number = float(match[1]) * _FACTORS[match[2].upper()] if match else 0
    count = round(number) if number <= _MOST else 0
    is_part = match is not None and not match[2] and number != count  # of 1.5K or 1e9 a whole number was meant
    if count < 1 or is_part:
        raise ValueError(f"{text!r} is no number such as 4096, 20M, 1.5B or 2T")
    return count


def parse_share(text: str) -> float:
    """Return a share: `1%`, `0.01`.

    Raises:
        ValueError: It is none.
    """
    number, is_percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    return float(number) / 100 if is_percent else float(number)


def perplexity(loss: float) -> float:
    """Return exp(loss), of a loss in nats a token; infinity where that is too large."""
    return math.exp(loss) if loss < 700 else math.inf


_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for ending, base in (("B", 1000), ("IB", 1024))
}


def parse_size(text: str | None, option: str = "--max-shard-size") -> int | None:
    """Return the bytes that `text` means (decimal units as on the Hub, binary with an `i`); None for None.

    Raises:
        OutputError: It is no size, or not positive.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.strip().upper())
    size = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else 0
    if not 1 <= size < 1 << 63:
        raise OutputError(f"{option} {text} is no size", expected="a number with a unit, such as 5GB or 500MB")
    return int(size)


def format_size(number: int) -> str:
    """Return a number of bytes as people read it, in binary units."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{number} B" if unit == "B" else f"{value:.1f} {unit}"
