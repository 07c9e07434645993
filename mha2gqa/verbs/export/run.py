"""`mha2gqa export`: a finished checkpoint for others."""

from dataclasses import asdict, dataclass
from typing import Any

from mha2gqa.files.reader import read_json
from mha2gqa.files.upload import check_account, push
from mha2gqa.files.working import refuse_unfinished
from mha2gqa.record.pair import find_converted
from mha2gqa.record.record import read_record
from mha2gqa.verbs.export.gguf import check_converter, write_gguf
from mha2gqa.verbs.export.options import ExportOptions


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was done."""

    checkpoint: str
    """Directory."""
    gguf: str | None
    """File that was written."""
    size: int | None
    """Its bytes."""
    pushed: str | None
    """Address of the repository that everything was uploaded to."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def export(options: ExportOptions) -> Exported:
    """Write a checkpoint as one GGUF file, upload it, or both.

    Args:
        options: Which one, and what to make of it. GGUF can be made of any checkpoint, an original's to compare with
            above all; what is uploaded has a record.

    Raises:
        Mha2GqaError: The checkpoint is none, llama.cpp does not know it, or the Hub refuses.
    """
    check_account(options.push_to_hub)
    if options.gguf is not None:
        check_converter()
    directory = find_converted() if options.converted is None else options.converted
    refuse_unfinished(directory)
    read_json(directory / "config.json")
    if options.push_to_hub is not None:
        read_record(directory)
    file = None if options.gguf is None else write_gguf(directory, options.gguf, force=options.force)
    pushed = options.push_to_hub and push(directory, options.push_to_hub, private=options.private)
    return Exported(
        checkpoint=str(directory),
        gguf=None if file is None else str(file),
        size=None if file is None else file.stat().st_size,
        pushed=pushed,
    )
