"""What `verify` returns: facts about a converted checkpoint beside its original, for people and for programs.

`Verification` is the whole report. Its levels are `FileLevel`, `LoadLevel` and one of `Compared`, by the kind of the
model, in `levels.py`; one that was not asked for, or that an earlier
level made impossible, is None. Sizes are in bytes.

Nothing is computed here beyond what follows from the fields; the console and the page word them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mha2gqa.heads.grouping import Groups
from mha2gqa.record.conversion import Conversion
from mha2gqa.verbs.verify.levels import (
    Compared,
    EmbeddingsLevel,
    EngineLevel,
    FileLevel,
    Finding,
    HeadLevel,
    LoadLevel,
    OutputsLevel,
)

Verdict: TypeAlias = Literal["identical", "within limits", "different"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the outputs level may differ by."""

    max_ppl_increase: float
    """Largest increase of the perplexity, as a fraction: 0.01 is one per cent."""
    max_kl: float
    """Largest mean KL divergence in nats a token."""
    min_top1: float
    """Least share of tokens at which both models find the same token most likely."""
    min_cosine: float
    """Least mean cosine of the embeddings of a block; for models without a head."""

    @property
    def exact(self) -> bool:
        """Whether no difference at all is allowed."""
        return self == Limits(max_ppl_increase=0.0, max_kl=0.0, min_top1=1.0, min_cosine=1.0)


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike the original's KV heads of one attention module are."""

    module: str
    """Attention module, as the file spells it."""
    values: tuple[tuple[float, ...], ...]
    """`[K][K]` cosine similarity between the weights of heads, keys and values together."""
    groups: Groups
    """Which heads became one."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One metric of one task of lm-evaluation-harness, for both models."""

    task: str
    """Name of the task, or of a group of tasks."""
    metric: str
    """Name of the metric, with its filter if it has one: `exact_match, strict-match`."""
    higher_is_better: bool | None
    """None where the task does not say."""
    samples: int | None
    """Documents that were scored; None for a group whose tasks do not all say."""
    shots: int | None
    """Examples before each document; None for a group whose tasks differ."""
    dataset: str
    """What the task reads, by its own definition: a Hub dataset id or a file format."""
    original: float
    """Score of the original."""
    original_error: float | None
    """Its standard error, where there is one."""
    converted: float
    """Score of the converted checkpoint."""
    converted_error: float | None
    """Its standard error, where there is one."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What to do about what is wrong."""

    text: str
    """As a phrase."""
    command: str | None = None
    """The command that does it; None where something would have to be filled in."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The report of `verify`."""

    original: str
    """Directory or Hub id."""
    converted: str
    """Directory."""
    conversion: Conversion
    """What was done, by the record."""
    versions: Mapping[str, str]
    """Package -> version that made the conversion."""
    limits: Limits
    """What the outputs may differ by."""
    verdict: Verdict
    """`identical`: nothing differs; `within limits`: no finding; `different`: at least one finding."""
    reasons: tuple[str, ...]
    """Why, as sentences; the first is the most important."""
    remedy: Remedy | None = None
    """What to do about the first of them; None where nothing is wrong, or nothing is known to do."""
    file: FileLevel | None
    """None when the level was not asked for."""
    load: LoadLevel | None
    """None when the level was not asked for, or the files are too damaged to load."""
    outputs: OutputsLevel | None
    """None when the level was not asked for, or the converted checkpoint cannot be run, or it has no head."""
    embeddings: EmbeddingsLevel | None = None
    """In place of `outputs` for models without a head."""
    head: HeadLevel | None = None
    """In place of `outputs` for models with the head of a task: labels, scores, spans."""
    engine: EngineLevel | None = None
    """None when no engine was asked for."""
    similarity: tuple[Similarity, ...] = ()
    """One for each attention module whose heads' similarity is known."""
    benchmarks: tuple[Benchmark, ...] = ()
    """Scores of the standard benchmarks that were asked for; they take no part in the verdict."""

    @property
    def compared(self) -> Compared | None:
        """What the outputs level found, whatever kind the model is of."""
        return self.outputs or self.embeddings or self.head

    @property
    def headline(self) -> str:
        """The verdict in people's words: limits are those of outputs, and say nothing where none were compared."""
        is_open = self.verdict == "within limits" and self.compared is None
        return "no fault found" if is_open else self.verdict

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, of all levels."""
        levels = (self.file, self.load, self.engine, self.compared)
        return tuple(one for level in levels if level for one in level.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values; numbers that are not finite become null."""
        content = {name: value for name, value in asdict(self).items() if name not in _OF_CONVERSION}
        content["conversion"] = self._conversion()
        if self.outputs and (loss := self.outputs.loss):
            before, after = loss.perplexities
            content["outputs"]["loss"] |= {
                "difference": loss.difference,
                "perplexities": {"original": before, "converted": after},
                "increase": loss.increase,
            }
        found: dict[str, Any] = plain(content)
        return found

    def _conversion(self) -> dict[str, Any]:
        made = self.conversion
        names = ("model_type", "command", "method", "way", "options", "groups", "rehosted_from", "text")
        facts = {name: getattr(made, name) for name in names} | made.change.numbers()
        more = {"errors": made.layer_errors, "uptrained": made.trainings}
        return facts | more | {name: getattr(self, name) for name in _OF_CONVERSION}


_OF_CONVERSION = ("original", "converted", "versions")


def plain(value: Any) -> Any:
    """Return a value with what JSON lacks replaced: tuples, paths, numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
