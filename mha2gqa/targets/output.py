"""Carries out a plan: weights, companions, record, card, and config.json last.

The one place where the order of these steps is decided; `convert` and `expand` share it.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mha2gqa.errors import OutputError
from mha2gqa.files.card import CardFacts, write_card
from mha2gqa.files.companions import copy_companions
from mha2gqa.files.pieces import OutputTensor
from mha2gqa.files.reader import Checkpoint, read_checkpoint
from mha2gqa.files.record import Record, write_record
from mha2gqa.files.sizes import parse_size
from mha2gqa.files.source import Source
from mha2gqa.files.staging import check_output, staged
from mha2gqa.files.threads import Progress
from mha2gqa.files.writer import OutputFile, divide, write_weights
from mha2gqa.methods import POOLINGS
from mha2gqa.targets.plan import Plan
from mha2gqa.targets.report import ChangeReport, cache_per_token, recomputed_kinds, tensor_rows

SLACK = 64 << 20
"""Bytes beside the weights that must be free: headers, tokenizer, record, the file system's own."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a plan is to be carried out."""

    command: str
    """`convert` or `expand`."""
    options: Mapping[str, object]
    """The options that change the result, by their names on the command line."""
    output: Path
    method: str
    seed: int
    max_shard_size: str | None
    force: bool
    dry_run: bool
    layers: Sequence[Mapping[str, Any]] = ()
    """What a layer method did to each layer."""
    trials: Sequence[Mapping[str, Any]] = ()
    """What `--method auto` tried; the one with the least loss is the result."""
    text: str | None = None
    """Where the calibration text came from."""
    divergence: tuple[float, float] | None = None
    """From the original in nats a token on text kept aside, before and after `joint` trained all layers together."""


def carry_out(plan: Plan, source: Source, checkpoint: Checkpoint, request: Request, progress: Progress) -> ChangeReport:
    """Write the planned checkpoint, which appears at once and whole; with `dry_run` only check and report.

    Raises:
        OutputError: The output cannot be written there, or what was written does not read back.
        CheckpointError: A source file ends early or has changed, or K/V hold NaN or infinity.
    """
    started = time.monotonic()
    files = divide(plan.tensors, parse_size(request.max_shard_size))
    record = _record(plan, checkpoint, request)
    report = replace(_report(plan, source, checkpoint, request, files), way=record.way)
    if request.dry_run:
        return report
    check_output(request.output, source.directory, plan.size + SLACK, force=request.force)
    pooling = POOLINGS.get(request.method, POOLINGS["mean"])
    with staged(request.output, force=request.force) as directory:
        checksums = write_weights(
            directory, files, method=pooling, seed=request.seed, metadata=checkpoint.metadata, progress=progress
        )
        copy_companions(checkpoint.directory, checkpoint.companions, directory)
        for name, text in (checkpoint.rehosted.files if checkpoint.rehosted else {}).items():
            (directory / name).write_text(text, encoding="utf-8")
        write_record(directory, record, source, plan.tensors, checksums)
        write_card(directory, _card_facts(report, checkpoint, source, request), source)
        _write_config(directory / "config.json", checkpoint, plan)
        _check_written(directory, plan.tensors)
        checkpoint.check_unchanged()
    return replace(report, written=True, seconds=time.monotonic() - started)


def _report(
    plan: Plan, source: Source, checkpoint: Checkpoint, request: Request, files: tuple[OutputFile, ...]
) -> ChangeReport:
    return ChangeReport(
        command=request.command,
        source=source.hub_id or str(source.directory),
        output=request.output,
        written=False,
        model_type=plan.model_type,
        method=request.method if request.command == "convert" else None,
        heads_before=plan.source_heads,
        heads_after=plan.target_heads,
        cache_before=cache_per_token(checkpoint.config, plan.tensors),
        cache_after=cache_per_token(plan.config, plan.tensors),
        bytes_read=sum(info.size for info in checkpoint.tensors),
        bytes_written=plan.size,
        config_changes=[asdict(change) for change in plan.config_changes],
        files={file.name: file.size for file in files},
        companions=[str(companion) for companion in checkpoint.companions],
        tensors=tensor_rows(checkpoint, plan),
        seconds=0.0,
        layers=list(request.layers),
        text=request.text,
        trials=list(request.trials),
        divergence=request.divergence,
        rehosted_from=checkpoint.rehosted.model_type if checkpoint.rehosted else None,
        added=[*checkpoint.rehosted.files] if checkpoint.rehosted else [],
    )


def _record(plan: Plan, checkpoint: Checkpoint, request: Request) -> Record:
    return Record(
        command=request.command,
        options=request.options,
        model_type=plan.model_type,
        source_heads=plan.source_heads,
        target_heads=plan.target_heads,
        config_changes=[asdict(change) for change in plan.config_changes],
        groups=plan.groups,
        dropped=plan.dropped,
        text=request.text,
        layers=list(request.layers),
        trials=list(request.trials),
        divergence=request.divergence,
        rehosted_from=checkpoint.rehosted.model_type if checkpoint.rehosted else None,
    )


def _card_facts(report: ChangeReport, checkpoint: Checkpoint, source: Source, request: Request) -> CardFacts:
    named = ((name, value if isinstance(value, list) else [value]) for name, value in request.options.items())
    options = (f"--{name} {value}" for name, values in named for value in values if value not in (None, ""))
    words = ["mha2gqa", request.command, source.argument, *options]
    return CardFacts(
        name=request.output.resolve().name,
        command=request.command,
        command_line=" ".join(word for word in words if word),
        heads_before=report.heads_before,
        heads_after=report.heads_after,
        cache_before=report.cache_before,
        cache_after=report.cache_after,
        rehosted_from=report.rehosted_from,
        model_type=report.model_type,
        recomputed=recomputed_kinds(checkpoint),
        improved_on=request.text if "refine" in request.options or request.method == "auto" else None,
    )


def _write_config(path: Path, checkpoint: Checkpoint, plan: Plan) -> None:
    if plan.config_changes or checkpoint.rehosted:
        path.write_text(json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        shutil.copyfile(checkpoint.directory / path.name, path)


def _check_written(directory: Path, tensors: tuple[OutputTensor, ...]) -> None:
    """Read the headers back from disk and hold them against the plan."""
    written = {info.name: (info.dtype, info.shape) for info in read_checkpoint(directory).tensors}
    if written != {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}:
        raise OutputError("What was written does not read back as planned", remedy="Check the disk, and try again")
