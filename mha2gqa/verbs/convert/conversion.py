"""A conversion that changes whole attention layers, from its options to one finished file per layer.

Decides what is needed (nothing, text, the model), refuses what cannot be, and gives the layers to `plan.py`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from mha2gqa.errors import CalibrationError, CheckpointError, TextError
from mha2gqa.files.pieces import LayerResult, path_of
from mha2gqa.files.staging import check_output, workspace
from mha2gqa.methods import AUTO, demand
from mha2gqa.model.devices import float64_device
from mha2gqa.model.kind import kind_of
from mha2gqa.model.layers import LayerFiles
from mha2gqa.model.original import Original
from mha2gqa.progress import Progress
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.targets.plan import Plan
from mha2gqa.targets.target import Target
from mha2gqa.texts.tables import named
from mha2gqa.units import parse_size
from mha2gqa.verbs.convert import automatic
from mha2gqa.verbs.convert.layerwise import DIVERGENCE, Layerwise
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.own_text import OwnText, decide, guessed
from mha2gqa.verbs.convert.reading import Text, check_text, needs_more


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was made of the layers."""

    options: ConvertOptions | None = None
    """Those that were carried out, with the text that was read."""
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
    own = decide(options, original) if layerwise.layers and not has_text else OwnText(options)
    options = own.options
    wants_text = needs_text or options.reads_text or has_text
    if plan.changed:
        _check_possible(options, layerwise, wants_text=wants_text)
    if options.dry_run or not plan.changed:
        notes = [own.note] if own.note and plan.changed else []
        yield Converted(options=options, layers=layerwise.planned() if plan.changed else [], notes=notes)
        return
    scratch = sum(info.size for result in layerwise.planned() for info in result.tensors)
    check_output(output, original.directory, plan.size + scratch, force=options.force)
    known, own = _read(own, original, progress) if wants_text else (None, own)
    options = own.options
    with workspace(output, fingerprint(options, original), keep=needs_text) as directory:
        layerwise, trials = layerwise.at(directory), list[automatic.Trial]()
        try:
            if known is not None:
                layerwise, trials = _by_text(layerwise, known, options, lambda: Activations(memory, directory))
        except CalibrationError as error:
            if not own.is_written:  # else what the model wrote unasked tells nothing of some layer
                raise
            known, own = None, guessed(own.options, error.problem.rstrip("."))
        if known is None:
            layerwise.from_weights()
        reports = [layerwise.files.report(number) for number in range(len(layerwise.layers))]
        divergences = [tuple(report.pop(DIVERGENCE)) for report in reports if DIVERGENCE in report]
        yield Converted(
            options=own.options,
            notes=[own.note] if own.note and known is None else [],
            layers=layerwise.results(),
            reports=reports,
            text=None if known is None else known.blocks.description + layerwise.unseen(known.blocks.tokens_NT),
            trials=[asdict(one) for one in trials],
            divergence=divergences[0] if divergences else None,
        )


def _read(own: OwnText, original: Original, progress: Progress) -> tuple[Text | None, OwnText]:
    """Find the text; where the model was to write it without having been asked to, and cannot, do without."""
    try:
        return Text.find(own.options, original, progress), own
    except (CalibrationError, CheckpointError, TextError) as error:
        if not own.is_written:
            raise
        return None, guessed(own.options, error.problem.rstrip("."))


def _by_text(
    layerwise: Layerwise, known: Text, options: ConvertOptions, memory: Callable[[], Activations]
) -> tuple[Layerwise, list[automatic.Trial]]:
    """Make the layers by text; return where they are, and what was tried."""
    blocks_NT, training = known.blocks.tokens_NT, Descent(steps=options.steps, seed=options.seed)
    if options.method == AUTO:
        return automatic.choose(layerwise, known.model, blocks_NT, options.max_ppl_increase, training, memory)
    if options.refine is not None:
        return layerwise.refined(known.model, blocks_NT, options.refine, training, memory()), []
    layerwise.from_statistics(known.model, blocks_NT)
    return layerwise, []


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
        raise needs_more(model_type, f"reads {kind.reads}")
    what = f"--refine {options.refine}" if options.refine else f"--method {options.method}"
    check_text(options, layerwise.files.original, what)


def _layerwise(options: ConvertOptions, plan: Plan, directory: Path, progress: Progress) -> Layerwise:
    return Layerwise(
        files=LayerFiles(plan.original, directory),
        plan=plan,
        merge=LayerMerge(method=options.method, grouping=options.grouping, seed=options.seed),
        progress=progress,
        device=float64_device(options.device),
    )


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
