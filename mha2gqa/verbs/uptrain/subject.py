"""What is trained: a converted checkpoint, its record, and its original where that is at hand."""

from dataclasses import dataclass
from pathlib import Path

from mha2gqa.errors import OriginalMissingError, PairError, SourceError, TrainingError
from mha2gqa.files.pieces import ITEMSIZES
from mha2gqa.files.reader import Checkpoint
from mha2gqa.files.source import Source
from mha2gqa.model.kind import kind_of
from mha2gqa.model.original import Original
from mha2gqa.record.conversion import Conversion
from mha2gqa.record.pair import converted_directory, find_pair
from mha2gqa.record.record import Record, read_record
from mha2gqa.verbs.uptrain.options import Objective, UptrainOptions


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A converted checkpoint to train."""

    converted: Original
    """The checkpoint that is trained, read as originals are."""
    record: Record
    original: Source | None
    """None where it is not at hand, and need not be."""
    objective: Objective

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.directory.resolve().name

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self.converted.directory

    @property
    def checkpoint(self) -> Checkpoint:
        """Its files."""
        return self.converted.checkpoint

    @property
    def learns_from_pairs(self) -> bool:
        """Whether it is an encoder-decoder, whose sources and targets are two texts."""
        return kind_of(self.converted.architecture.outline).has_encoder

    @property
    def of_reference(self) -> bool:
        """Whether the original is the checkpoint that ships with the package."""
        return self.original is not None and self.original.is_reference


def find_subject(options: UptrainOptions) -> Subject:
    """Find the converted checkpoint and its original.

    Raises:
        PairError: One cannot be found, or they do not belong together.
        CheckpointError: One of them is damaged.
        TrainingError: Text does not train a model of this kind, or the objective needs the original, and it
            is not at hand, or is what the checkpoint answers like already.
    """
    directory = converted_directory(options.converted)
    record, converted = read_record(directory), Original.at(directory)
    _check_kind(converted)
    _check_change(converted, record)
    original = _find_original(options, directory)
    objective: Objective = options.objective or ("lm" if original is None else "distil")
    if original is None and objective != "lm":
        raise TrainingError(
            f"--objective {objective} learns from the original, which is not where the record says",
            remedy="Name it with --against, or use --objective lm",
        )
    if objective == "distil" and _is_original(record.conversion):
        raise TrainingError(
            f"Nothing is lost in {directory}: each of its KV heads is one of the original's",
            expected="heads that were merged, for --objective distil",
            remedy="Use --objective lm to train it on text",
        )
    return Subject(converted=converted, record=record, original=original, objective=objective)


def _find_original(options: UptrainOptions, directory: Path) -> Source | None:
    try:
        return find_pair(directory, options.against).original.source
    except (OriginalMissingError, SourceError):
        if options.against is not None:
            raise
        return None


def _is_original(conversion: Conversion) -> bool:
    """Whether the checkpoint answers as the original does, so that its divergence from that is zero."""
    return conversion.effect != "loss"


def _check_kind(converted: Original) -> None:
    kind = kind_of(converted.architecture.outline)
    if not kind.reads_tokens:
        what = f"{kind.name} reads {kind.reads}, and this trains on text"
        raise TrainingError(what, expected="a model that reads text")
    if kind.has_encoder and not kind.answers_text_with_text:
        what = f"{kind.name} does not answer text with text"
        raise TrainingError(what, expected="a text-to-text class of transformers")
    if not kind.has_encoder and not (kind.predicts_next_token and kind.generates):
        raise TrainingError(
            f"{kind.name} has no next token to predict from tokens alone",
            expected="a language model with its head: causal, or from text to text",
            remedy="Refine it instead: mha2gqa convert --refine distil",
        )
    dtypes = {info.dtype for info in converted.tensors}
    if not dtypes & set(ITEMSIZES):
        raise TrainingError(f"The weights have dtypes {', '.join(sorted(dtypes))}", expected=f"one of {[*ITEMSIZES]}")


def _check_change(converted: Original, record: Record) -> None:
    """Refuse a checkpoint that no longer has what the record says that it was changed to."""
    for name, value in record.conversion.found(converted.architecture).items():
        fact = next(fact for fact in record.conversion.change.facts if fact.name == name)
        if value != fact.after:
            raise PairError(
                f"{converted.directory} has {value} {fact.label}, and its record says {fact.after}",
                expected="the checkpoint as the conversion left it",
                remedy="Convert again",
            )
