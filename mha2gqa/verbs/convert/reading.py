"""The original, loaded, and the text to run it on; what cannot be run on text, or has none, is refused."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.methods import AUTO
from mha2gqa.model.feed import attempt, inputs
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import context_length, load_original, load_tokenizer
from mha2gqa.model.original import Original
from mha2gqa.progress import QUIET, WRITING, Progress
from mha2gqa.texts.blocks import check_vocabulary
from mha2gqa.texts.find import Blocks, find_blocks
from mha2gqa.texts.words import RANDOM, SELF, check_words
from mha2gqa.verbs.convert.options import ConvertOptions

_LEAST_BLOCKS = 8
"""Blocks of text below which nothing can be learned and measured."""


@dataclass(frozen=True)
class Text:
    """The original, loaded, and the text to run it on."""

    model: PreTrainedModel
    blocks: Blocks

    @classmethod
    def find(cls, options: ConvertOptions, original: Original, progress: Progress = QUIET) -> "Text":
        """Load the original, and find the text that the options name.

        Raises:
            Mha2GqaError: It has no tokenizer, does not run on text, or the text is missing or too short.
        """
        tokenizer = load_tokenizer(original.directory)
        with progress.under_way("loading the original"):
            model = load_original(original, dtype=options.dtype, device=options.device)
            _check_runs(model, options)
        blocks = find_blocks(
            options.data,
            source=original.source,
            tokenizer=tokenizer,
            model=lambda: model,
            context=context_length(model.config, options.context),
            tokens=options.tokens,
            purpose="calibration",
            column=options.column,
            seed=options.seed,
            least=_LEAST_BLOCKS,
            advance=progress.part(WRITING),
        )
        check_vocabulary(int(blocks.tokens_NT.max()), original.architecture.vocabulary)
        return cls(model.requires_grad_(requires_grad=False), blocks)


def check_text(options: ConvertOptions, original: Original, what: str) -> None:
    """Refuse options of which one, `what`, needs text, where none was given, or none that can be.

    Raises:
        CalibrationError: None was given.
        TextError: Words and files stand side by side, or blocks are longer than the model reads.
    """
    if not options.reads_text and not (original.source.is_reference and not options.data):
        raise CalibrationError(
            f"{what} needs calibration text, and none was given",
            expected="--data with files or Hub data sets like what the model was trained on",
            remedy="Or let the model write it: --data self",
        )
    check_words(options.data, (SELF, RANDOM))
    context_length(original.architecture.text_config, options.context)


@torch.no_grad()
def _check_runs(model: PreTrainedModel, options: ConvertOptions) -> None:
    """Refuse a model that does not run on token ids, or does not give what the options ask for."""
    output = attempt(lambda: model(**inputs(model, torch.zeros(1, 2, dtype=torch.int64))))
    if isinstance(output, str):
        raise needs_more(model.config.model_type, f"fails on token ids ({output})")
    kind, is_judged = kind_of(model), options.method == AUTO
    if (is_judged and not kind.predicts_next_token) or (
        (is_judged or options.refine == "joint") and not (kind.gives_tokens and "logits" in output)
    ):
        what = "--method auto" if is_judged else "--refine joint"
        raise CalibrationError(
            f"{kind.name} has no next token to predict, by which {what} measures",
            expected="a language model with its head",
            remedy="Use --method aligned with --refine distil",
        )


def needs_more(model_type: str, why: str) -> CalibrationError:
    """Return the refusal of a model that text alone is not enough to run."""
    return CalibrationError(
        f"A {model_type!r} model cannot be run on text alone: it {why}",
        expected="a model that runs on token ids",
        remedy="Convert it without --refine: --method aligned --data none",
    )
