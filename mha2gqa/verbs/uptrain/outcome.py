"""What `uptrain` returns: facts, for the console and pages to word and for programs to read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mha2gqa.rates import Trial
from mha2gqa.units import perplexity
from mha2gqa.verbs.uptrain.length import Length

TRIED_TOKENS = 8192
"""Of the held-out text, at most, by which a learning rate is chosen; reports say so beside what was found."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Mean losses on the held-out blocks, in nats a token."""

    before: float
    """Of the converted checkpoint."""
    after: float
    """Of the output, as it is on disk: rounded to its dtype."""
    original: float | None
    """None where the original is not at hand."""
    tokens: int
    """How many tokens were predicted."""

    @property
    def gap_closed(self) -> float | None:
        """Share of the loss above the original's that is won back."""
        return gap_closed(self.before, self.after, self.original)

    def to_json(self) -> dict[str, Any]:
        """Return them with their perplexities."""
        losses = {"before": self.before, "after": self.after, "original": self.original}
        perplexities = {name: None if loss is None else perplexity(loss) for name, loss in losses.items()}
        return losses | {"tokens": self.tokens, "gap_closed": self.gap_closed, "perplexities": perplexities}


@dataclass(frozen=True, kw_only=True)
class UptrainReport:
    """Report of `uptrain`; after a dry run it has no losses."""

    converted: str
    original: str | None
    output: Path
    written: bool
    model_type: str
    train: str
    objective: str
    parameters: Mapping[str, int]
    """How many train (`trained`), of how many (`all`)."""
    length: Length
    text: str
    learning_rate: float
    """Of a dry run that would try several the highest."""
    processes: int
    device: str
    recipe: Mapping[str, Any] = field(repr=False)
    trials: tuple[Trial, ...] = ()
    """What the learning rate was chosen by, the start first; empty where it was named, or follows from the width."""
    text_tokens: int | None = None
    """Tokens of training text on disk; what is read more is repetition."""
    step_tokens: float | None = None
    """Tokens of a step as they are read: of pairs, which the length counts as full, there are fewer."""
    mixes: bool = True
    """Whether a block holds several documents, kept apart in the attention."""
    losses: Losses | None = None
    history: list[Mapping[str, Any]] = field(default_factory=list, repr=False)
    """The Trainer's log."""
    step: int | None = None
    """The step whose weights were kept; 0 is the start, where nothing was gained."""
    changed: int | None = None
    """Tensors that are not the converted checkpoint's."""
    seconds: float | None = None
    """Of training, in this process."""
    tokens_per_second: float | None = None
    """Of training, measurements included, in this process."""
    pushed: str | None = None
    """Address of the repository that the result was uploaded to."""

    @property
    def is_worse(self) -> bool:
        """Whether the result is worse on held-out text than what the run began with."""
        return self.losses is not None and self.losses.after > self.losses.before

    @property
    def in_training(self) -> float | None:
        """The held-out loss of the weights that are kept, as the run measured it: not yet rounded to the file's dtype.

        None where nothing was gained, and where it was not measured.
        """
        return dict(self.series("eval_loss")).get(self.step) if self.step else None

    @property
    def rounds(self) -> float | None:
        """How often the training text is read."""
        if not self.text_tokens or self.step_tokens is None:
            return None
        return self.length.steps * self.step_tokens / self.text_tokens

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return a series of the log: step, value."""
        return [(int(entry["step"]), float(entry[name])) for entry in self.history if name in entry]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        length = asdict(self.length) | {"tokens": self.length.tokens, "alpha": self.length.alpha}
        losses = None if self.losses is None else self.losses.to_json()
        derived = {"output": str(self.output), "length": length, "losses": losses, "in_training": self.in_training}
        return asdict(self) | derived


def gap_closed(before: float, now: float, original: float | None) -> float | None:
    """Return which share of the loss above the original's is won back; None where there is no gap to speak of."""
    if original is None or before - original < 1e-6:
        return None
    return (before - now) / (before - original)
