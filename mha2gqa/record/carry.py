"""Carries out a plan: the checkpoint with its record and its card. `convert` and `expand` share it."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mha2gqa.files.finish import SLACK, Contents, finish
from mha2gqa.files.pieces import OutputTensor
from mha2gqa.files.pool import Pool
from mha2gqa.files.staging import check_output
from mha2gqa.files.writer import divide
from mha2gqa.methods import streamed
from mha2gqa.progress import Progress
from mha2gqa.record.card import card_of
from mha2gqa.record.conversion import Outcome
from mha2gqa.record.record import record_of, source_checksums
from mha2gqa.targets import names_of
from mha2gqa.targets.plan import Plan
from mha2gqa.targets.target import Target
from mha2gqa.units import parse_size


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a plan is to be carried out."""

    command: str
    """`convert` or `expand`."""
    target: Target
    """What was planned."""
    options: Mapping[str, Any]
    """The options that change the result, by their names on the command line."""
    output: Path
    max_shard_size: str | None = None
    force: bool = False
    dry_run: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)
    """What is to be known besides: fields of `Conversion` that say what a layer method did."""

    @property
    def pool(self) -> Pool:
        """Makes one head of the heads of a group, as the options say; where nothing is merged it has nothing to do."""
        return Pool(streamed(self.options.get("method")), int(self.options.get("seed", 0)))


def carry_out(plan: Plan, request: Request, progress: Progress) -> Outcome:
    """Write the planned checkpoint, which appears at once and whole; with `dry_run` only check and report.

    Raises:
        OutputError: The output cannot be written there, or what was written does not read back.
        CheckpointError: A source file ends early or has changed, or K/V hold NaN or infinity.
    """
    started = time.monotonic()
    original, source = plan.original, plan.original.source
    files = divide(plan.tensors, parse_size(request.max_shard_size))
    outcome = _outcome(plan, request, {file.name: file.size for file in files})
    if request.dry_run:
        return outcome
    check_output(request.output, source.directory, plan.size + SLACK, force=request.force)
    is_same = original.origin.is_own and not plan.config_changes
    contents = Contents(
        files=files,
        pool=request.pool,
        source=original.checkpoint,
        config=None if is_same else plan.result.config_json,
        record=lambda checksums: record_of(
            outcome, source, plan.tensors, checksums, source_checksums(original.filed, plan.tensors, checksums)
        ),
        card=card_of(outcome, source),
        more={name: text.encode() for name, text in original.origin.files.items()},
    )
    finish(request.output, contents, force=request.force, progress=progress)
    return replace(outcome, written=True, seconds=time.monotonic() - started)


def _outcome(plan: Plan, request: Request, files: Mapping[str, int]) -> Outcome:
    original = plan.original
    return Outcome(
        command=request.command,
        options=request.options,
        targets=names_of(request.target),
        model_type=plan.result.model_type,
        rehosted_from=plan.rehosted_from,
        change=plan.change,
        config_changes=[asdict(change) for change in plan.config_changes],
        groups=plan.groups,
        dropped=plan.pieces.dropped,
        source=original.name,
        output=request.output,
        written=False,
        cache_before=plan.cache[0],
        cache_after=plan.cache[1],
        cache_at=plan.cache_at,
        bytes_read=original.size,
        bytes_written=plan.size,
        files=files,
        companions=[str(companion) for companion in original.checkpoint.companions],
        left_behind=list(original.checkpoint.left_behind),
        taken_off=[*original.checkpoint.unwrapped, *original.checkpoint.stale],
        added=[*original.origin.files],
        tensors=_tensor_rows(plan),
        recomputed=_kinds(tensor.name for tensor in plan.tensors if tensor.name in plan.recomputed),
        **{**request.told, "notes": [*request.told.get("notes", []), *plan.aim.notes]},
    )


def _tensor_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return what happens to each tensor: name, action, dtype, shape before and after."""
    before = plan.original.infos
    rows = [
        {
            "name": tensor.name,
            "action": _action(plan, tensor),
            "dtype": tensor.dtype,
            "before": before[tensor.name].shape if tensor.name in before else None,
            "after": tensor.shape,
        }
        for tensor in plan.tensors
    ]
    dropped = (*(before[name] for name in plan.pieces.dropped), *plan.original.origin.dropped)
    return rows + [
        {"name": info.name, "action": "dropped", "dtype": info.dtype, "before": info.shape, "after": None}
        for info in dropped
    ]


def _action(plan: Plan, tensor: OutputTensor) -> str:
    if not (tensor.is_copy or tensor.is_made):
        return "changed"
    return "recomputed" if tensor.name in plan.recomputed else "copied"


def _kinds(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of tensors, one with `*` for all layers."""
    return tuple(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
