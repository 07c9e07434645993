"""What can go wrong by the user's doing or the machine's, and how it is worded.

Every refusal is one message with three parts: the problem with the value in it, what was expected,
and what to do. `console.py` prints it and exits with 1. Anything that is not a `Mha2GqaError` is a
bug of ours or of a library, and keeps its traceback.

Names in messages come from files that others made: `visible` keeps them from steering a terminal.
"""

import unicodedata

KEPT = "What was finished stays in {}"
"""What is said when a run ends early and leaves something to the next one; see `going_on`."""

_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of others."""


def going_on(place: object, command: str = "the same command") -> str:
    """Return where work stays and what goes on with it, as `KEPT` and `Interrupted` have it."""
    return f"{place}, and {command} goes on from there"


def visible(text: str) -> str:
    r"""Return text with the characters that cannot be seen, or that turn others around, written as `\x1b`."""
    if text.isprintable():  # nearly always, and far quicker
        return text
    return "".join(character if _is_plain(character) else _escaped(character) for character in text)


def is_text(name: object) -> bool:
    """Return whether the name of a file is text: to the system it may be any bytes, which no record can hold."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain(character: str) -> bool:
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING
    return character in "\n\t" or not hidden


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Mha2GqaError(Exception):
    """Base of every refusal.

    Args:
        problem: What is wrong, with the offending value.
        expected: What would have been right; may be empty where the problem says it.
        remedy: What the user can do next.
    """

    def __init__(self, problem: str, *, expected: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.remedy = remedy
        self.kept = ""
        """Where finished work stays, and what goes on from there; empty where nothing is left behind."""
        super().__init__(problem, expected, remedy)

    def __str__(self) -> str:
        expected = f"Expected {self.expected}" if self.expected else ""
        kept = KEPT.format(self.kept) if self.kept else ""
        sentences = (self.problem, expected, self.remedy, kept)
        text = " ".join(f"{sentence.rstrip('.')}." for sentence in sentences if sentence)
        return visible(text).replace("\n", "\\n")


class OptionError(Mha2GqaError):
    """An option has a value that it cannot have; on the command line that is wrong usage."""


class SourceError(Mha2GqaError):
    """The model that was named cannot be found, reached or opened."""


class CheckpointError(Mha2GqaError):
    """The files of a checkpoint are missing, malformed, hostile or of a kind that cannot be converted."""


class FamilyError(Mha2GqaError):
    """The model type is unknown, or its attention cannot have fewer KV heads."""


class GroupsError(Mha2GqaError):
    """The number of groups does not fit the number of KV heads."""


class OutputError(Mha2GqaError):
    """The output cannot be written where it was asked for."""


class TextError(Mha2GqaError):
    """The text to work on is missing, unreadable or too short, or there is no tokenizer for it."""


class MethodError(Mha2GqaError):
    """There is no method of that name."""


class CalibrationError(Mha2GqaError):
    """A method cannot learn what it needs from the text, or the family does not allow a step of it."""


class DeviceError(Mha2GqaError):
    """The device that was asked for is not there."""


class PairError(Mha2GqaError):
    """The two checkpoints do not belong together, or one of them cannot be found."""


class OriginalMissingError(PairError):
    """The original of a converted checkpoint is not where its record says."""


class TrainingError(Mha2GqaError):
    """An uptraining cannot be run as it was asked for, or it went wrong."""


class BenchmarkError(Mha2GqaError):
    """The standard benchmarks cannot be run as they were asked for."""


class TimingError(Mha2GqaError):
    """What was asked to be timed cannot be: it does not fit, is unknown, or its engine is not installed."""


class EngineError(Mha2GqaError):
    """An engine that others wrote is not installed, or does not take the checkpoint."""


class SweepError(Mha2GqaError):
    """What a sweep is to try does not exist, or cannot be measured, or its results belong to another one."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, in a run of which something stays.

    Args:
        kept: What and where, as `KEPT` has it, and what goes on from there (`going_on`).
    """

    def __init__(self, kept: str) -> None:
        self.kept = kept
        super().__init__(kept)
