"""Numbers as people write them (`256K` tokens, an increase of `1%`), and a loss as they compare it."""

import math
import re

_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMBT]?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(text: str) -> int:
    """Return a whole number, 1 or more: `20M`, `2T`, `1.5e9`, `4096`.

    Raises:
        ValueError: It is none.
    """
    match = _COUNT.fullmatch(text.strip().replace(",", "").replace("_", ""))
    count = round(float(match[1]) * _FACTORS[match[2].upper()]) if match else 0
    if count < 1:
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
