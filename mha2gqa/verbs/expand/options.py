"""What can be asked of `expand`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from mha2gqa.options import Option, Options
from mha2gqa.verbs.options import AsJson, DryRun, Force, ShardSize


@dataclass(frozen=True, kw_only=True)
class ExpandOptions(Options):
    """Repeat the KV heads of a checkpoint, without loss."""

    model: Annotated[str, Option("Directory or Hub id (org/name, org/name@revision).", is_argument=True)]
    output: Annotated[Path, Option("Directory to create.", flags=("--output", "-o"))]
    heads: Annotated[int | None, Option("KV heads of the result. Default: one per query head.")] = None
    max_shard_size: ShardSize = None
    force: Force = False
    dry_run: DryRun = False
    as_json: ClassVar[AsJson] = False
