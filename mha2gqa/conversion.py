"""A conversion that changes whole attention layers, from its options to one finished file per layer.

Decides what is needed (nothing, text, the model), refuses what cannot be, and gives the layers to `plan.py`.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from mha2gqa import automatic
from mha2gqa.calibration.activations import Activations
from mha2gqa.calibration.distil import DistilOptions
from mha2gqa.calibration.merge import Merge
from mha2gqa.checkpoint.layers import LayerFiles
from mha2gqa.checkpoint.pieces import LayerResult
from mha2gqa.checkpoint.reader import Checkpoint
from mha2gqa.checkpoint.sizes import parse_size
from mha2gqa.checkpoint.source import Source, reference_directory
from mha2gqa.checkpoint.staging import check_output, workspace
from mha2gqa.errors import CalibrationError
from mha2gqa.layerwise import Layerwise, Progress, Tell
from mha2gqa.merging import LAYER_METHODS
from mha2gqa.models import context_length, load_model, load_tokenizer
from mha2gqa.options import ConvertOptions
from mha2gqa.plan import Plan, convert_targets
from mha2gqa.texts.find import Blocks, find_blocks

AUTO = "auto"
_LEAST_BLOCKS = 8
"""Blocks of text below which nothing can be learned and measured."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was made of the layers."""

    layers: list[LayerResult] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    text: str | None = None
    trials: list[dict[str, Any]] = field(default_factory=list)


def is_layerwise(options: ConvertOptions) -> bool:
    """Return whether heads cannot be merged one quantity at a time.

    Raises:
        CalibrationError: Options contradict one another.
    """
    wants_text = options.refine is not None or options.method == AUTO
    if options.data and not wants_text and options.method not in LAYER_METHODS and options.grouping == "contiguous":
        raise CalibrationError(
            f"--method {options.method} makes no use of --data",
            expected=f"--method {' or '.join([*LAYER_METHODS, AUTO])}, --grouping similar, or --refine",
        )
    if options.refine is not None and options.method == AUTO:
        raise CalibrationError("--method auto chooses how far to refine", remedy="Leave out --refine, or name a method")
    return wants_text or options.method in LAYER_METHODS or options.grouping == "similar"


@contextlib.contextmanager
def converted_layers(
    options: ConvertOptions,
    source: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    tell: Tell,
    progress: Progress,
) -> Iterator[Converted]:
    """Make the layers of a conversion; they lie beside the output as long as the block runs.

    Args:
        options: What was asked for.
        source: The original.
        checkpoint: Its files.
        plan: The conversion without changed layers.
        output: The directory that will be created at last.
        tell: Told of each finished layer.
        progress: Told of everything else that takes long.

    Raises:
        Mha2GqaError: Text or a tokenizer is missing, the output cannot be written, or the family forbids a step.
    """
    empty = LayerFiles(checkpoint, output)
    layerwise = _layerwise(options, empty, tell, progress)
    if options.dry_run or not plan.changed:
        yield Converted(layers=layerwise.planned() if plan.changed else [])
        return
    scratch = sum(info.size for result in layerwise.planned() for info in result.tensors)
    check_output(output, source.directory, plan.size + scratch, force=options.force)
    wants_text = options.refine is not None or options.method == AUTO or bool(options.data)
    memory = parse_size(options.activation_memory, "--activation-memory") or 0
    known = _Text.find(options, source) if wants_text else None
    with workspace(output, _fingerprint(options, checkpoint), keep=wants_text) as directory:
        layerwise = _layerwise(options, LayerFiles(checkpoint, directory), tell, progress)
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
            layerwise.refined(known.model, known.blocks.tokens_NT, options.refine, _training(options), activations)
        else:
            layerwise.from_statistics(known.model, known.blocks.tokens_NT)
        reports = [layerwise.files.report(number) for number in range(len(layerwise.layers))]
        text = None if known is None else known.blocks.description
        yield Converted(layers=layerwise.results(), reports=reports, text=text, trials=[asdict(one) for one in trials])


@dataclass(frozen=True)
class _Text:
    """The original, loaded, and the text to run it on."""

    model: PreTrainedModel
    blocks: Blocks

    @classmethod
    def find(cls, options: ConvertOptions, source: Source) -> "_Text":
        if not options.data and source.directory != reference_directory():
            what = f"--refine {options.refine}" if options.refine else f"--method {options.method}"
            raise CalibrationError(
                f"{what} needs calibration text, and none was given",
                expected="--data with files or Hub data sets like what the model was trained on",
                remedy="Or let the model write it: --data self",
            )
        tokenizer = load_tokenizer(source.directory)
        model = load_model(source.directory, dtype=options.dtype, device=options.device)
        _check_runs_on_text(model)
        blocks = find_blocks(
            options.data,
            source=source,
            tokenizer=tokenizer,
            model=lambda: model,
            context=context_length(model.config, options.context),
            tokens=options.tokens,
            purpose="calibration",
            column=options.column,
            seed=options.seed,
            least=_LEAST_BLOCKS,
        )
        return cls(model.requires_grad_(requires_grad=False), blocks)


def _check_runs_on_text(model: PreTrainedModel) -> None:
    if model.main_input_name != "input_ids" or (model.config.is_encoder_decoder and not model.can_generate()):
        raise CalibrationError(
            f"A {model.config.model_type!r} model reads {model.main_input_name}, not text alone",
            expected="a model that runs on token ids",
            remedy="Convert it without --data and --refine: --method aligned",
        )


def _layerwise(options: ConvertOptions, files: LayerFiles, tell: Tell, progress: Progress) -> Layerwise:
    method = "aligned" if options.method == AUTO else options.method
    merge = Merge(method=method, grouping=options.grouping, seed=options.seed)
    targets = convert_targets(files.checkpoint.config, options.groups)
    return Layerwise(files=files, targets=targets, merge=merge, tell=tell, progress=progress)


def _training(options: ConvertOptions) -> DistilOptions:
    return DistilOptions(steps=options.steps, seed=options.seed)


def _fingerprint(options: ConvertOptions, checkpoint: Checkpoint) -> str:
    """Return what intermediate results depend on: the options, the source's files, the versions."""
    ignored = ("output", "max_shard_size", "force", "dry_run", "activation_memory", "max_ppl_increase")
    asked = {name: value for name, value in asdict(options).items() if name not in ignored}
    paths = sorted({str(getattr(info.file, "path", info.file)) for info in checkpoint.tensors})
    files = [(path, (stat := Path(path).stat()).st_size, stat.st_mtime_ns) for path in paths]
    content = [asked, files, torch.__version__, transformers.__version__]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
