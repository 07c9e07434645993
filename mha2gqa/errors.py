"""What can go wrong by the user's doing or the machine's, and how it is worded.

Every refusal is one message with three parts: the problem with the value in it, what was expected,
and what to do. `console.py` prints it and exits with 1. Anything that is not a `Mha2GqaError` is a
bug of ours or of a library, and keeps its traceback.
"""

KEPT = "What was finished stays in {}, and the same command goes on from there"
"""What is said when a run ends early and leaves something to the next one."""


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
        """Where finished layers stay, from which the same command goes on; empty where nothing is left behind."""
        super().__init__(problem, expected, remedy)

    def __str__(self) -> str:
        expected = f"Expected {self.expected}" if self.expected else ""
        kept = KEPT.format(self.kept) if self.kept else ""
        sentences = (self.problem, expected, self.remedy, kept)
        return " ".join(f"{sentence.rstrip('.')}." for sentence in sentences if sentence)


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


class SweepError(Mha2GqaError):
    """What a sweep is to try does not exist, or cannot be measured, or its results belong to another one."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, in a run whose finished layers stay.

    Args:
        kept: Where they are.
    """

    def __init__(self, kept: str) -> None:
        self.kept = kept
        super().__init__(kept)
