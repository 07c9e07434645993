"""The words that stand in the place of text; they can be judged before anything reads text."""

from collections.abc import Iterable, Sequence

from mha2gqa.errors import TextError
from mha2gqa.texts.tables import check_exists, named

SELF = "self"
"""What --data says to have the model write the text."""
NONE = "none"
"""What --data says to do without text."""
RANDOM = "random"
"""What --data says to draw tokens at random."""
WORDS = (SELF, NONE, RANDOM)


def check_words(data: Sequence[str], possible: Sequence[str] = (SELF,)) -> None:
    """Refuse `self`, `none` and `random` where they mean nothing, or stand beside other text.

    Raises:
        TextError: One of them does not stand alone, or is not among the possible.
    """
    for word in (one for one in WORDS if one in data):
        if word not in possible:
            raise TextError(
                f"{word!r} is no text that answers could be learned from or measured on here",
                expected=" or ".join(("text", *possible)),
                remedy=f"A file of that name is ./{word}",
            )
        if len(data) > 1:
            raise TextError(f"--data {word} stands beside other text", expected=f"either {word} or files and data sets")


def is_text(data: Sequence[str]) -> bool:
    """Return whether text was named: files or data sets, and not what the model writes, nor nothing."""
    return bool(data) and not {*data} & {*WORDS}


def check_named(data: Iterable[str]) -> None:
    """Refuse files that are not there, of what was named beside words; of the Hub nothing is asked.

    Raises:
        TextError: One is missing, empty, or no file.
    """
    check_exists([named(one).name for one in data if one not in WORDS])
