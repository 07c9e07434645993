"""Sizes as people write them (`5GB`, `500MB`, `2GiB`), and as they are shown to people (`1.8 GiB`)."""

import re

from mha2gqa.errors import OutputError

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
