"""What can be asked of `inspect`."""

from dataclasses import dataclass
from typing import ClassVar

from mha2gqa.options import Options
from mha2gqa.verbs.options import AsJson, Model


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Options):
    """Show what a checkpoint is and what each choice would save."""

    model: Model = None
    as_json: ClassVar[AsJson] = False
