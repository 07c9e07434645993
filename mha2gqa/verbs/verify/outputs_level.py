"""The outputs level of `verify`: both models on the same tokens, in one pass over each.

Batch by batch, the original reads, then the converted model, then their logits are compared a few
positions at a time. Masked language models are compared by their distributions alone: their loss on text
without masks means nothing. Encoder-decoders read each block in both halves.

Legend: N blocks, B blocks of a batch, T tokens of a block.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import PairError
from mha2gqa.files.source import Source
from mha2gqa.model.feed import Body, attempt
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import context_length, load_tokenizer
from mha2gqa.progress import Advance
from mha2gqa.texts.blocks import check_vocabulary
from mha2gqa.texts.find import Blocks, find_blocks
from mha2gqa.texts.words import SELF
from mha2gqa.verbs.verify.judge import limit_findings
from mha2gqa.verbs.verify.levels import OutputsLevel
from mha2gqa.verbs.verify.load_level import Models
from mha2gqa.verbs.verify.measures import ComparedText
from mha2gqa.verbs.verify.metrics import LayerErrors, Sums
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Limits
from mha2gqa.verbs.verify.side_by_side import agreement, continuations

BATCH_TOKENS = 2048
"""Tokens of a batch, unless the user says how many blocks."""
_TOKENS, _WRITTEN, _WRITTEN_CONTEXT = 32_768, 8192, 512
"""Tokens to compare, those that the original writes itself, and those of a block then, unless others are asked for."""


@dataclass(frozen=True)
class EvaluationText:
    """Tokens to compare the models on."""

    blocks: Blocks
    tokenizer: PreTrainedTokenizerBase
    """The original's."""


def writes_itself(options: VerifyOptions, source: Source) -> bool:
    """Return whether the original writes the text, asked to or as there is none."""
    return SELF in options.data or not (options.data or source.is_reference)


def find_text(
    source: Source,
    config: PreTrainedConfig,
    original: Callable[[], PreTrainedModel],
    options: VerifyOptions,
    advance: Advance,
) -> EvaluationText:
    """Find the text, or have the original write it.

    Args:
        source: The original.
        config: Its config.
        original: Gives its model; called only when it has to write the text.
        options: Which text, and how much of it.
        advance: Told of every token that it writes.

    Raises:
        TextError: There is no tokenizer, or the text is missing, unreadable or too short.
    """
    tokenizer = load_tokenizer(source.directory)
    context, is_written = context_length(config, options.context), writes_itself(options, source)
    blocks = find_blocks(
        options.data,
        source=source,
        tokenizer=tokenizer,
        model=original,
        # Blocks are written side by side, a token of all of them at a time: short ones take the fewest steps.
        context=min(context, _WRITTEN_CONTEXT) if is_written and options.context is None else context,
        tokens=options.tokens or (_WRITTEN if is_written else _TOKENS),
        purpose="evaluation",
        column=options.column,
        seed=options.seed,
        advance=advance,
    )
    known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if isinstance(known, int):
        check_vocabulary(int(blocks.tokens_NT.max()), known)
    return EvaluationText(blocks, tokenizer)


@torch.inference_mode()
def compare_outputs(
    models: Models, text: EvaluationText, limits: Limits, options: VerifyOptions, advance: Advance
) -> OutputsLevel | str:
    """Compare what both models make of the same tokens.

    Args:
        models: The original and the converted checkpoint.
        text: The tokens, as `find_text` gives them.
        limits: What they may differ by.
        options: How many blocks are run at a time, and the seed of the bootstrap.
        advance: Told of every batch, in tokens.

    Returns:
        The level, or why the original does not run on tokens alone.

    Raises:
        PairError: The converted checkpoint cannot be run.
    """
    started = time.monotonic()
    ids_NT = text.blocks.tokens_NT
    original, converted = models.original, loaded(models)
    first = attempt(lambda: Body(original, ids_NT[:1]))
    if isinstance(first, str):
        return f"the original gives no logits for tokens alone ({first})"
    layers, written = layer_errors(models), continuations(original, converted, text.tokenizer, ids_NT)
    cut = batches(ids_NT, options.batch_size)
    sums = read_both(first, Body(converted, ids_NT[:1]), layers, cut, advance, text.blocks.answers_NT)
    level = OutputsLevel(
        text=describe_text(text.blocks, sums.tokens),
        loss=sums.loss(options.seed),
        kl=sums.divergence(),
        top1=sums.top1 / sums.tokens,
        top5=sums.top5 / sums.tokens,
        largest_logit_difference=sums.largest,
        positions=sums.positions(),
        layers=layers.results(),
        continuations=written,
        agreement=agreement(written),
        answers=sums.answers.result(),
        dtype=models.dtype,
        device=original.device.type,
        seconds=time.monotonic() - started,
        findings=(),
    )
    return replace(level, findings=tuple(limit_findings(level, limits)))


def loaded(models: Models) -> PreTrainedModel:
    """Return the converted model.

    Raises:
        PairError: It does not load strictly.
    """
    if models.converted is None:
        raise PairError(f"{models.pair.converted} does not load strictly: {'; '.join(models.problems[:3])}")
    return models.converted


def layer_errors(models: Models) -> LayerErrors:
    """Return sums, still empty, of the errors of the attention modules that both models have."""
    return LayerErrors(models.modules, models.pair.original.origin.output_scale or 1.0)


def batches(ids_NT: torch.Tensor, size: int | None) -> Sequence[torch.Tensor]:
    """Cut blocks into batches of `size`, or of as many as `BATCH_TOKENS` hold."""
    cut: Sequence[torch.Tensor] = ids_NT.split(size or max(1, BATCH_TOKENS // ids_NT.shape[1]))
    return cut


def read_both(
    original: Body,
    converted: Body,
    layers: LayerErrors,
    batches: Sequence[torch.Tensor],
    advance: Advance,
    answers_NT: torch.Tensor | None = None,
) -> Sums:
    """Have both models read every batch, once, and compare what they make of it.

    Args:
        original: The original.
        converted: The converted model.
        layers: Takes the errors of the attention modules that it names.
        batches: Token ids.
        advance: Told of every batch, in tokens.
        answers_NT: bool, which of the tokens are answers of conversations.
    """
    sums, total = Sums(), sum(ids_BT.numel() for ids_BT in batches)
    predicts = kind_of(original.model).head != "masked token"
    for ids_BT in batches:
        with layers.original(original.model):
            first = original.read(ids_BT)
        with layers.converted(converted.model):
            second = converted.read(ids_BT)
        rows = slice(sums.blocks, sums.blocks + len(ids_BT))
        sums.add(first, second, ids_BT, predicts=predicts, answers_BT=None if answers_NT is None else answers_NT[rows])
        advance(ids_BT.numel(), total)
    return sums


def read_pairs(
    read: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor],
    models: Models,
    layers: LayerErrors,
    batches: Sequence[torch.Tensor],
    advance: Advance,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what the original and the converted model make of every batch.

    Args:
        read: Returns what a model makes of token ids.
        models: Both.
        layers: Takes the errors of the attention modules that it names.
        batches: Token ids.
        advance: Told of every batch, in tokens.
    """
    converted, total = loaded(models), sum(ids_BT.numel() for ids_BT in batches)
    for ids_BT in batches:
        with layers.original(models.original):
            first = read(models.original, ids_BT)
        with layers.converted(converted):
            second = read(converted, ids_BT)
        yield first, second
        advance(ids_BT.numel(), total)


def describe_text(blocks: Blocks, tokens: int) -> ComparedText:
    """Return what is to be known of a text of which so many tokens were compared."""
    count, context = blocks.tokens_NT.shape
    return ComparedText(
        description=blocks.description, sampled=blocks.sampled, blocks=count, context=context, tokens=tokens
    )
