"""Models beside the original on held-out text, by the very functions of `verify`, so that the numbers are the same.

`Yardstick` holds the original and the tokens, loaded once for all candidates. `single_layers` measures the original
with one attention module converted: in the original's own class, with the KV heads of that module repeated.

Legend: N blocks, T tokens of a block.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import SweepError
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.devices import placement
from mha2gqa.model.feed import Body, attempt
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import drawn, load_unchecked
from mha2gqa.model.original import Original
from mha2gqa.progress import QUIET, WRITING, Advance, Progress
from mha2gqa.record.carry import Request, carry_out
from mha2gqa.targets.expand import Restore
from mha2gqa.targets.plan import make_plan
from mha2gqa.verbs.sweep.outcome import Measured
from mha2gqa.verbs.verify.measures import ComparedText
from mha2gqa.verbs.verify.metrics import LayerErrors
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outputs_level import batches, describe_text, find_text, read_both


def check_kind(model: PreTrainedModel) -> None:
    """Refuse, by its class, a model that has no loss on text.

    Raises:
        SweepError: It is a masked language model, an encoder with the head of a causal one, or has no head.
    """
    kind = kind_of(model)
    if kind.predicts_next_token:
        return
    why = "sees the tokens that it predicts" if kind.sees_ahead else "predicts masked tokens"
    problem, compared = f"{why}; its loss on text without masks means nothing", "distributions"
    if kind.head == "none":
        problem, compared = "has no head, and so no loss on text", "hidden states"
    elif not kind.gives_tokens:
        problem, compared = "gives no distribution of tokens, and so has no loss on text", "outputs of its head"
    raise SweepError(
        f"{kind.name} {problem}",
        expected="a language model that predicts the next token",
        remedy=f"Convert it, and compare the {compared} with `mha2gqa verify`",
    )


class Yardstick:
    """The original, and the tokens that every candidate is measured on.

    Args:
        original: The original.
        options: Which text and how much of it, the dtype, the device and the seed.
        progress: Told of every token of a text that the original writes.

    Raises:
        TextError: The text is missing, unreadable or too short, or there is no tokenizer.
        DeviceError: The device is not there.
        SweepError: The model does not run on tokens alone.
    """

    def __init__(self, original: Original, options: VerifyOptions, progress: Progress = QUIET) -> None:
        source, config = original.source, original.architecture.config
        self._place = placement(source.directory, dtype=options.dtype, device=options.device, models=2)
        self._source, self._options = source, options
        found = find_text(source, config, lambda: self.original, options, progress.part(WRITING))
        self._blocks, self._ids_NT = found.blocks, found.blocks.tokens_NT
        body = attempt(lambda: self._body(self.original))
        if isinstance(body, str):
            raise SweepError(f"A {config.model_type!r} model cannot be run on text alone: {body}")
        self._original_body = body

    @cached_property
    def original(self) -> PreTrainedModel:
        """The original, loaded.

        Raises:
            SweepError: Its files lack a part, which each load would draw at random.
        """
        model, problems = load_unchecked(self._source.directory, self._place)
        if names := drawn(model, problems):
            raise SweepError(
                f"{self._source.directory} lacks {names[0]}, which each load of {type(model).__name__} draws at random",
                expected="a whole model: nothing can be told from what random numbers say",
                remedy="Check that config.json and the weights belong together",
            )
        return model

    @property
    def dtype(self) -> str:
        """In which models are run."""
        return str(self.original.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """On which models are run."""
        return self.original.device.type

    @property
    def text(self) -> ComparedText:
        """What is evaluated on."""
        count, length = self._ids_NT.shape
        return describe_text(self._blocks, count * (length - 1))

    def load(self, directory: Path) -> PreTrainedModel:
        """Load a checkpoint as the original is."""
        return load_unchecked(directory, self._place)[0]

    @torch.inference_mode()
    def measure(self, model: PreTrainedModel, advance: Advance) -> Measured:
        """Measure a model.

        Args:
            model: The model, as `load` gives it.
            advance: Told of every batch, in tokens.
        """
        cut = batches(self._ids_NT, self._options.batch_size)
        sums = read_both(self._original_body, self._body(model), LayerErrors({}), cut, advance)
        loss = sums.loss(self._options.seed)
        if loss is None:
            raise AssertionError("masked models were refused")
        return Measured(loss=loss, kl=sums.divergence().mean, top1=sums.top1 / sums.tokens)

    @torch.inference_mode()
    def _body(self, model: PreTrainedModel) -> Body:
        return Body(model, self._ids_NT[:1])


def single_layers(
    yardstick: Yardstick,
    original: PreTrainedModel,
    expanded: PreTrainedModel,
    modules: Sequence[str],
    advance: Advance,
    *,
    only: Sequence[str] | None = None,
) -> Iterator[tuple[str, Measured]]:
    """Measure the original with one attention module converted, for one module after the other.

    Args:
        yardstick: The text, and what is measured on it.
        original: The original, in the class that the converted model has.
        expanded: The converted model with its KV heads repeated, so that it has the same shapes. Its attention
            modules are exchanged for the original's and back.
        modules: Names of the attention modules.
        advance: Told of every batch, in tokens of all modules that are measured.
        only: Which of them are measured; None measures all.

    Yields:
        Each module's name, and what was measured.
    """
    converted = {name: _weights(expanded, name) for name in modules}
    for name in modules:
        _exchange(expanded, name, _weights(original, name))
    measured = modules if only is None else only
    for name in measured:
        _exchange(expanded, name, converted[name])
        yield name, yardstick.measure(expanded, lambda done, total: advance(done, total * len(measured)))
        _exchange(expanded, name, _weights(original, name))
    for name in modules:
        _exchange(expanded, name, converted[name])


def _weights(model: PreTrainedModel, module: str) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in model.get_submodule(module).named_parameters()}


def _exchange(model: PreTrainedModel, module: str, weights: dict[str, torch.Tensor]) -> None:
    """Give a module's parameters other values; nothing is copied where both are on one device."""
    for name, parameter in model.get_submodule(module).named_parameters():
        parameter.data = weights[name].to(parameter.device)


def restore(converted: Path, original: Architecture, output: Path) -> None:
    """Write a converted checkpoint with its KV heads repeated, in the shapes of its original; its outputs stay."""
    target = Restore(like=original)
    plan = make_plan(Original.at(converted), target)
    request = Request(command="expand", target=target, options={}, output=output, force=True)
    carry_out(plan, request, QUIET)
