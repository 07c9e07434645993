"""A conversion that changes whole attention layers, from its options to one finished file per layer.

Decides what is needed (nothing, text, the model), refuses what cannot be, and gives the layers to `plan.py`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from mha2gqa.errors import CalibrationError
from mha2gqa.files.pieces import LayerResult, path_of
from mha2gqa.files.staging import check_output, workspace
from mha2gqa.methods import AUTO, demand
from mha2gqa.model.devices import float64_device
from mha2gqa.model.feed import attempt, inputs
from mha2gqa.model.kind import kind_of
from mha2gqa.model.layers import LayerFiles
from mha2gqa.model.load import context_length, load_original, load_tokenizer
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.targets.plan import Plan
from mha2gqa.targets.target import Target
from mha2gqa.texts.blocks import check_vocabulary
from mha2gqa.texts.find import Blocks, find_blocks
from mha2gqa.texts.tables import named
from mha2gqa.units import parse_size
from mha2gqa.verbs.convert import automatic
from mha2gqa.verbs.convert.layerwise import DIVERGENCE, Layerwise
from mha2gqa.verbs.convert.options import ConvertOptions

_LEAST_BLOCKS = 8
"""Blocks of text below which nothing can be learned and measured."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was made of the layers."""

    target: Target | None = None
    """What text has chosen, where it had a choice."""
    layers: list[LayerResult] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    text: str | None = None
    trials: list[dict[str, Any]] = field(default_factory=list)
    divergence: tuple[float, float] | None = None
    """In nats a token on text kept aside, before and after all layers were trained together."""
    notes: list[str] = field(default_factory=list)
    """Sentences about the result."""

    def told(self) -> dict[str, Any]:
        """Return what the outcome keeps of it."""
        told = {"layers": self.reports, "text": self.text, "trials": self.trials, "divergence": self.divergence}
        return told | {"notes": self.notes}


@contextlib.contextmanager
def converted_layers(
    options: ConvertOptions, plan: Plan, output: Path, progress: Progress, *, has_text: bool = False
) -> Iterator[Converted]:
    """Make the layers of a conversion; they lie beside the output as long as the block runs.

    Args:
        options: What was asked for.
        plan: The conversion without changed layers.
        output: The directory that will be created at last.
        progress: Told of each finished layer, and of everything else that takes long.
        has_text: Whether text has chosen something already, and so is there for a method that can make use of it.

    Raises:
        Mha2GqaError: Text or a tokenizer is missing, the output cannot be written, or the family forbids a step.
    """
    original = plan.original
    layerwise = _layerwise(options, plan, output, progress)
    memory = parse_size(options.activation_memory, "--activation-memory") or 0
    needs_text = demand(options.method, options.grouping, options.refine).needs_text
    wants_text = needs_text or bool(options.data) or has_text
    if plan.changed:
        _check_possible(options, layerwise, wants_text=wants_text)
    if options.dry_run or not plan.changed:
        yield Converted(layers=layerwise.planned() if plan.changed else [])
        return
    scratch = sum(info.size for result in layerwise.planned() for info in result.tensors)
    check_output(output, original.directory, plan.size + scratch, force=options.force)
    known = Text.find(options, original) if wants_text else None
    with workspace(output, fingerprint(options, original), keep=needs_text) as directory:
        layerwise = layerwise.at(directory)
        trials: list[automatic.Trial] = []
        if known is None:
            layerwise.from_weights()
        elif options.method == AUTO:
            layerwise, trials = automatic.choose(
                layerwise,
                known.model,
                known.blocks.tokens_NT,
                options.max_ppl_increase,
                _training(options),
                lambda: Activations(memory, directory),
            )
        elif options.refine is not None:
            activations = Activations(memory, directory)
            blocks = known.blocks.tokens_NT
            layerwise = layerwise.refined(known.model, blocks, options.refine, _training(options), activations)
        else:
            layerwise.from_statistics(known.model, known.blocks.tokens_NT)
        reports = [layerwise.files.report(number) for number in range(len(layerwise.layers))]
        divergences = [tuple(report.pop(DIVERGENCE)) for report in reports if DIVERGENCE in report]
        yield Converted(
            layers=layerwise.results(),
            reports=reports,
            text=None if known is None else known.blocks.description + layerwise.unseen(known.blocks.tokens_NT),
            trials=[asdict(one) for one in trials],
            divergence=divergences[0] if divergences else None,
        )


@dataclass(frozen=True)
class Text:
    """The original, loaded, and the text to run it on."""

    model: PreTrainedModel
    blocks: Blocks

    @classmethod
    def find(cls, options: ConvertOptions, original: Original) -> "Text":
        """Load the original, and find the text that the options name.

        Raises:
            Mha2GqaError: It has no tokenizer, does not run on text, or the text is missing or too short.
        """
        tokenizer = load_tokenizer(original.directory)
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
        )
        check_vocabulary(int(blocks.tokens_NT.max()), original.architecture.vocabulary)
        return cls(model.requires_grad_(requires_grad=False), blocks)


def _check_possible(options: ConvertOptions, layerwise: Layerwise, *, wants_text: bool) -> None:
    """Refuse, by names and shapes alone, what the family does not allow, and text that is missing."""
    architecture = layerwise.files.original.architecture
    layerwise.files.check_plain(layerwise.plan.aim.layers())
    model_type, kind = architecture.model_type, kind_of(architecture.outline)
    if options.grouping == "similar" and not any(layer.sortable for layer in layerwise.layers):
        raise CalibrationError(
            f"The KV heads of this {model_type!r} model cannot change places, so --grouping similar can choose nothing",
            expected="attention in which nothing but known tensors depends on the order of the heads",
            remedy="Leave out --grouping",
        )
    if not wants_text:
        return
    if not layerwise.layers:
        raise CalibrationError(
            f"No attention layer of this {model_type!r} model can be improved on text: "
            "its projections cannot be told apart",
            remedy="Convert it with --method mean, and without --data and --refine",
        )
    if not kind.reads_tokens:
        raise _needs_more(model_type, f"reads {kind.reads}")
    what = f"--refine {options.refine}" if options.refine else f"--method {options.method}"
    check_text(options, layerwise.files.original, what)


def check_text(options: ConvertOptions, original: Original, what: str) -> None:
    """Refuse options of which one, `what`, needs text where none was given.

    Raises:
        CalibrationError: There is none.
    """
    if not options.data and not original.source.is_reference:
        raise CalibrationError(
            f"{what} needs calibration text, and none was given",
            expected="--data with files or Hub data sets like what the model was trained on",
            remedy="Or let the model write it: --data self",
        )


@torch.no_grad()
def _check_runs(model: PreTrainedModel, options: ConvertOptions) -> None:
    """Refuse a model that does not run on token ids, or does not give what the options ask for."""
    output = attempt(lambda: model(**inputs(model, torch.zeros(1, 2, dtype=torch.int64))))
    if isinstance(output, str):
        raise _needs_more(model.config.model_type, f"fails on token ids ({output})")
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


def _needs_more(model_type: str, why: str) -> CalibrationError:
    return CalibrationError(
        f"A {model_type!r} model cannot be run on text alone: it {why}",
        expected="a model that runs on token ids",
        remedy="Convert it without --data and --refine: --method aligned",
    )


def _layerwise(options: ConvertOptions, plan: Plan, directory: Path, progress: Progress) -> Layerwise:
    return Layerwise(
        files=LayerFiles(plan.original, directory),
        plan=plan,
        merge=LayerMerge(method=options.method, grouping=options.grouping, seed=options.seed),
        progress=progress,
        device=float64_device(options.device),
    )


def _training(options: ConvertOptions) -> Descent:
    return Descent(steps=options.steps, seed=options.seed)


def fingerprint(options: ConvertOptions, original: Original) -> str:
    """Return what intermediate results depend on: options, the files of the source and of the text, versions."""
    ignored = ("output", "max_shard_size", "force", "dry_run", "activation_memory", "max_ppl_increase")
    asked = {name: value for name, value in asdict(options).items() if name not in ignored}
    paths = {str(path_of(info.file)) for info in original.tensors} | {
        *filter(os.path.isfile, (named(one).name for one in options.data))
    }
    files = [(path, (stat := Path(path).stat()).st_size, stat.st_mtime_ns) for path in sorted(paths)]
    versions = [version("mha2gqa"), torch.__version__, transformers.__version__]
    content = [asked, files, original.config_json, versions]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
